"""What Inspect finds: nothing heavy is imported before it is used."""

# An optional extra.
# pyright: reportMissingImports=false

from inspect_ai.model import ModelAPI, modelapi

from refusal_steering.scorers import classifier, phrases, token
from refusal_steering.tasks import over_refusal, refusal, xstest

__all__ = ["classifier", "over_refusal", "phrases", "refusal", "steered", "token", "xstest"]


@modelapi(name="steered")
def steered() -> type[ModelAPI]:
    """A model as one arm of a run steers it: `--model steered/MODEL -M run=FOLDER -M arm=ARM`."""
    from refusal_steering.provider import SteeredAPI

    return SteeredAPI
