"""The contract's own words: labels, splits, units, scopes, operations and kinds of arms, as files and options spell them."""

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
DEFAULT_STRENGTH, DEFAULT_UNIT, DEFAULT_SCOPE = -0.3, "residual", "generated"
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
