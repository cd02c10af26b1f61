"""Weights in 8 or 4 bits, through bitsandbytes: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) and NF4 (Dettmers et al.
2023, arXiv 2305.14314). What blocks put out stays in the type that the model computes in; its numbers are others.
"""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from data.contract import UNQUANTISED
from data.errors import UserError
from interventions.model.placing.device_map import offloaded_parts

if TYPE_CHECKING:
    from interventions.model.model import Model

INSTALL = (
    "--quantize needs bitsandbytes: pip install 'refusal-steering[quantize]', or pip install bitsandbytes accelerate"
)


def quantiser(quantize: str, config: Any, name: str, compute: Any) -> Any:
    """transformers' configuration of a quantisation.

    Args:
        quantize: `8bit` or `4bit`.
        config: The model's.
        name: As the user named it.
        compute: torch's type, or `auto` for the checkpoint's own.

    Raises:
        UserError: bitsandbytes is not installed, or the checkpoint is quantised already.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{name}: its weights are quantised already; leave out --quantize")
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise UserError(INSTALL)
    if quantize == "8bit":
        # It computes in float16 and says so at every product.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    own = getattr(config, "dtype", None) or torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=own if compute == "auto" else compute
    )


def check_unquantised(model: "Model", what: str) -> None:
    """Are a model's weights held as its type says?

    Args:
        model: Open.
        what: What reads or changes them, the subject of a message.

    Raises:
        UserError: They are quantised.
    """
    if model.quantized != UNQUANTISED:
        raise UserError(f"{what} takes weights as they are, and these are held in {model.quantized}: "
                        f"pass --quantize {UNQUANTISED}")  # fmt: skip


def check_plain_weights(model: "Model", what: str) -> None:
    """Are all of a model's weights in memory, as its type says?

    Raises:
        UserError: They are quantised, or some are brought in for each pass.
    """
    check_unquantised(model, what)
    if offloaded_parts(model.module):
        raise UserError(
            f"{what} takes all weights in memory, and the device map leaves some on disk: leave out --device-map"
        )
