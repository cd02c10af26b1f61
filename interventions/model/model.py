"""An open model and what the rest of the tool needs to know of it."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from data.contract import UNQUANTISED, default_layer
from interventions.backends.backend import LOCAL, Backend
from interventions.model.formats.choice import PromptFormat, rendering_of, template_hash
from interventions.model.kinds import is_alibi, keeps_state
from interventions.traced.blocks import entrance


@dataclass(frozen=True)
class Model:
    """An open model and what the rest of the tool needs to know of it.

    Attributes:
        nnsight: The nnsight model, ready for traces.
        module: transformers' module.
        tokenizer: Its tokenizer.
        layers: The decoder blocks (nnsight envoys; attributes of the modules behind them work too).
        name: As the user named it.
        revision: Commit of the hub, release of the embedded weights, or a hash of a local folder.
        dtype: Name of the weights' type, e.g. `float32`.
        backend: Where its traces run.
        rules: What its generation_config asks of greedy decoding, where that is followed: field -> value.
        quantized: In how few bits its linear layers' weights are held: `none`, `8bit` or `4bit`.
        offloaded: Holds a folder of weights on disk for as long as the model is open.
    """

    nnsight: Any
    module: Any
    tokenizer: Any
    layers: Any
    name: str
    revision: str
    dtype: str
    backend: Backend = LOCAL
    rules: Mapping[str, Any] = field(default_factory=dict)
    quantized: str = UNQUANTISED
    offloaded: Any = field(default=None, repr=False, compare=False)

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return len(self.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.module.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        """Where the input of the first block lies."""
        device = entrance(self.module)
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def takes_masks(self) -> bool:
        """Whether its attention takes a mask of who sees whom, so that what prompts share can be computed once.

        Layers that see a window of the last tokens alone would need another mask than the others, and a recurrent memory
        or a bias of positions (ALiBi) takes none.
        """
        if self.backend.vllm is not None or self.keeps_state or is_alibi(self.module.config):
            return False
        config = self.module.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or [
            "sliding" if getattr(config, "sliding_window", None) else "full_attention"
        ]
        return getattr(self.module.config, "_attn_implementation", None) == "sdpa" and set(kinds) == {"full_attention"}

    @property
    def keeps_state(self) -> bool:
        """Whether it remembers more than keys and values; its rows are read without padding."""
        return keeps_state(self.module)

    @property
    def goes_on(self) -> bool:
        """Whether rows can join and leave between two steps: its module is in this process, and a cache is all it remembers."""
        return self.backend.kind == "local" and self.backend.has_module and not self.keeps_state

    @property
    def identity(self) -> list[str]:
        """What results of this model rest on, for a journal's key."""
        rules = map(repr, self.rules.items())
        engine = [] if self.backend.vllm is None else ["vllm"]  # what one began no other ends
        return [self.name, self.revision, self.template_hash, self.dtype, *self.held.values(), *engine, *rules]

    @property
    def held(self) -> dict[str, str]:
        """What records and keys say of quantised weights; of others nothing."""
        return {} if self.quantized == UNQUANTISED else {"quantize": self.quantized}

    @property
    def template_hash(self) -> str:
        """SHA-256 of the chat template and of what else decides how prompts are put; of the empty text where there is none."""
        return template_hash(self.tokenizer)

    @property
    def prompt_format(self) -> PromptFormat:
        """How prompts are put into words."""
        return rendering_of(self.tokenizer).format

    def default_layer(self) -> int:
        """round(18/32 · n_layers), at most n_layers − 1: the depth the papers steer at, in any model."""
        return default_layer(self.n_layers)
