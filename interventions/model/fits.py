"""Does what was computed from one model's activations belong to this model?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data.contract import SITE
from data.errors import UserError
from data.store.tensors import logger

if TYPE_CHECKING:
    from interventions.model.model import Model


def check_model(what: str, metadata: Mapping[str, str], width: int, layers: Sequence[int], model: "Model") -> None:
    """Does what was computed from one model's activations belong to this model?

    Args:
        what: `the vectors`, `the probe`: the subject of a message.
        metadata: The artefact's.
        width: The artefact's d_model.
        layers: The blocks it was computed at.
        model: The model it is to be used on.

    Raises:
        UserError: Another model, width, site, or a layer that the model does not have.
    """
    if metadata.get("site") != SITE:
        raise UserError(f"{what} were read at {metadata.get('site')!r}; this tool steers {SITE}")
    if width != model.d_model:
        raise UserError(f"{what} are {width} wide, model {model.name!r} is {model.d_model}")
    if metadata.get("model") != model.name:
        raise UserError(f"{what} are those of {metadata.get('model')!r}, not of {model.name!r}")
    old = metadata.get("revision")
    if old and model.revision and old != model.revision:
        logger.warning("%s were computed with revision %s of %r; this is %s", what, old, model.name, model.revision)
    if max(layers) >= model.n_layers:
        raise UserError(f"{what} go to layer {max(layers)}, model {model.name!r} ends at {model.n_layers - 1}")
