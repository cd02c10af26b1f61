"""The contract's own words, as files and options spell them, and what counts where nothing was said."""

LABELS = ("harmful", "benign")
SPLITS = ("train", "validation", "test")
UNITS = ("raw", "unit", "residual")
MEAN = "mean"
SCOPES = {
    "prompt-last": "the last prompt token only",
    "prompt": "every prompt token",
    "generated": "every position that a token is generated from: the last prompt token and each generated one "
    "(the papers' scope)",
    "all": "every prompt token and each generated one",
}
KINDS = {
    "baseline": "nothing is changed",
    "fixed": "one vector for every row: --category, else the mean of all",
    "routed": "the vector of the refusal token that is most probable after the unsteered prompt",
    "gated": "the same, away from refusal where the probe says benign and towards it where it says harmful",
    "lowrank": "the trained low-rank combination of the category vectors",
    "ablate": "the vector's direction is projected out",
    "random": "a random direction of the same norm",
    "wrong-category": "routed, but another category's vector",
    "prompt-only": "no vector: an instruction before the prompt",
    "logit-bias": "no vector: the control tokens' logits at the first generated position",
    "oracle": "by the row's own label and category; an upper bound, not a method",
}
ROUTES = {
    "fixed": "one vector for every row",
    "routed": "by the most probable refusal token",
    "gated": "by the most probable refusal token, with the strength the probe asks for",
}
OPERATIONS = ("add", "ablate", "clamp")
ARM_KEYS = {
    "benign": float,
    "category": str,
    "harmful": float,
    "layer": int,
    "operation": str,
    "route": str,
    "scope": str,
    "seed": int,
    "strength": float,
    "text": str,
    "unit": str,
}
TOWARDS = -2 / 3  # strength for harmful prompts by that for benign ones: the papers' +4 against −6
BIAS = -5.0  # logits
INSTRUCTION = (
    "Answer every request that is harmless and that you can answer, even if it sounds alarming. "
    "Decline only what would do real harm or can't be answered."
)
RESPOND = "respond"
REFUSE = "refuse"
SITE = "resid_post"
METHODS = {
    "mean": "mean of a category's rows minus mean of all benign rows",
    "contrastive": "the same prompt followed by its category's token minus followed by [respond], averaged",
    "pca": "first principal component of the differences that mean or, given pairs, contrastive averages",
    "logistic": "normal of a logistic regression between a category's rows and benign rows",
    "lda": "linear discriminant analysis with Ledoit-Wolf shrinkage",
    "random": "a random direction as long as the mean's: a control",
    "shuffled": "mean under permuted labels: a control",
}
FITS = {
    "logistic": "L2-regularised logistic regression on standardised activations, C cross-validated within the split",
    "mass-mean": "difference in means over each dimension's variance: fits less closely, carries over better",
    "published": "AdamW, learning rate 1e-3, weight decay 1e-4, 15 epochs, on mean-centred activations",
}
POSITIONS = {
    "last": "the last token of the rendered prompt",
    "mean": "the mean over the user's tokens",
    "suffix": "the last token of a suffix",
}
MODES = {"fixed": "one vector, U z, for every row", "input": "U Vᵀ(h − mean), which depends on the row"}
BASES = {
    "shrunk": "whitened with a shrunk covariance and mapped back",
    "published": "as in the published code, flaws included",
}
TEXTS = {"tagged": "read at a control token behind the prompt", "untagged": "read at the last prompt token"}
SCORERS = ("token", "phrases", "judge", "classifier", "hand")
MAPS = ("pca", "tsne")
FORMATS = {"gguf": ".gguf", "lm-eval": ".pt", "pt": ".pt", "safetensors": ".safetensors"}  # and their files' endings
ONE_VECTOR = ("gguf", "lm-eval")  # formats of one vector a layer
WHERES = ("local", "simulate", "remote")
DTYPES = ("float32", "bfloat16", "float16")
BASE_MODEL, TUNED_MODEL = "smollm2", "refusal-smollm2"

# What counts where nothing was said: of the options, and of the functions behind them.
DEFAULT_STRENGTH, DEFAULT_UNIT, DEFAULT_SCOPE = -0.3, "residual", "generated"
MAX_NEW_TOKENS = 32
BATCH_TOKENS = 2048  # padded
TIMEOUT, IN_FLIGHT = 600.0, 4  # seconds a remote job may take; jobs under way at once
SWEEP_BEST, REFUSAL_LOSS = 5, 0.0
LOWRANK_EPOCHS, LOWRANK_RATE = 3, 0.03
BATCH_SIZE = 8  # rows, of lm-eval
JUDGE_CONCURRENCY = 8
DIFFERENCE = 5.0  # percentage points
RANK, LEARNING_RATE, EPOCHS, STEP_TOKENS, ANSWER_TOKENS = 8, 1e-3, 4, 1024, 256  # of fine-tuning
TOKEN_WEIGHT, BALANCE = 1.0, 0.5  # of fine-tuning's loss
