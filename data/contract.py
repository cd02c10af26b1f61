"""The contract's own words: labels, splits, units, scopes, operations and kinds of arms, as files and options spell them."""

from typing import NamedTuple

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


class Kind(NamedTuple):
    """A kind of arm.

    Attributes:
        help: What it does.
        table: What is added: the `vectors`, a `random` direction of their norms, each category's `next` one's, a trained
            `lowrank` map, or nothing.
        route: A key of `ROUTES`.
        operation: One of `OPERATIONS`, or `none`.
        strength: By default; None: `DEFAULT_STRENGTH`.
        unit: By default; None: `DEFAULT_UNIT`.
        instructs: Whether an instruction stands before the prompt.
        biases: Whether control tokens' logits at the first generated position get the strength.
        reads_tokens: Whether it reads refusal tokens whatever its route.
        reads_labels: Whether it reads a row's category and label: an upper bound, not a method.
    """

    help: str
    table: str = "vectors"
    route: str = "fixed"
    operation: str = "add"
    strength: float | None = None
    unit: str | None = None
    instructs: bool = False
    biases: bool = False
    reads_tokens: bool = False
    reads_labels: bool = False


DEFAULT_STRENGTH, DEFAULT_UNIT, DEFAULT_SCOPE = -0.3, "residual", "generated"
TOWARDS = -2 / 3  # strength for harmful prompts by that for benign ones: the papers' +4 against −6
BIAS = -5.0  # logits
KINDS = {
    "baseline": Kind("nothing is changed", "", operation="none"),
    "fixed": Kind("one vector for every row: --category, else the mean of all"),
    "routed": Kind("the vector of the refusal token that is most probable after the unsteered prompt", route="routed"),
    "gated": Kind("the same, away from refusal where the probe says benign and towards it where it says harmful",
                  route="gated"),
    "lowrank": Kind("the trained low-rank combination of the category vectors", "lowrank", strength=1.0, unit="raw"),
    "ablate": Kind("the vector's direction is projected out", operation="ablate"),
    "random": Kind("a random direction of the same norm", "random"),
    "wrong-category": Kind("routed, but another category's vector", "next", "routed", reads_tokens=True),
    "prompt-only": Kind("no vector: an instruction before the prompt", "", operation="none", instructs=True),
    "logit-bias": Kind("no vector: the control tokens' logits at the first generated position", "", operation="none",
                       strength=BIAS, unit="raw", biases=True, reads_tokens=True),
    "oracle": Kind("by the row's own label and category; an upper bound, not a method", reads_labels=True),
}  # fmt: skip
ROUTES = {
    "fixed": "one vector for every row",
    "routed": "by the most probable refusal token",
    "gated": "by the most probable refusal token, with the strength the probe asks for",
}
OPERATIONS = ("add", "ablate", "clamp")
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
