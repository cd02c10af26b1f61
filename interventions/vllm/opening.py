"""Opening a vLLM engine for a model: here or at a server; nothing of vLLM is imported before one is asked for."""

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from data.contract import MOST_LENGTH
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.backends.backend import VLLMOptions
    from interventions.vllm.engine import Engine


def check_versions() -> None:
    """Is vLLM here, in a version that this was tried with?

    Raises:
        UserError: It is not.
    """
    from interventions.vllm.local import vllm_version

    vllm_version()


def open_engine(
    source: str, name: str, module: Any, path: str, dtype: Any, device: str, options: "VLLMOptions", tokenizer: Any
) -> "Engine":
    """Open an engine, and tell the tokenizer how long its rows may be.

    Args:
        source: Folder or hub id.
        name: As the user named it.
        module: transformers' model, without weights.
        path: Of its list of decoder blocks, dotted.
        dtype: Of the weights, or `auto`: the checkpoint's.
        device: torch's name of the device.
        options: How it is opened.
        tokenizer: Of the model.

    Raises:
        UserError: vLLM can't run the model, or its blocks don't put out what steering needs.
    """
    from interventions.vllm.engine import Engine
    from interventions.vllm.local import Local
    from interventions.vllm.served import Served

    known = type_name(module.config.get_text_config().dtype if dtype == "auto" else dtype)
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--engine vllm runs on cpu and cuda, not on {device}: pass --engine transformers")
    length = min(tokenizer.model_max_length, options.max_model_len or MOST_LENGTH)
    tokenizer.model_max_length = length
    settings = {
        "max_model_len": length,
        "tensor_parallel_size": options.tensor_parallel,
        "max_num_seqs": options.requests,
    }
    if options.memory is not None and kind == "cuda":
        settings["gpu_memory_utilization"] = options.memory
    if type(module).__name__ not in (module.config.architectures or ()):  # a base model's config may name none
        settings["hf_overrides"] = {"architectures": [type(module).__name__]}
    transport = Served(source, known, options, settings) if options.serve else Local(source, known, kind, settings)
    try:
        stream = attrgetter(path.rpartition(".")[0])(transport.network)
        count = len(attrgetter(path)(transport.network))
    except AttributeError:
        raise UserError(
            f"vLLM runs {name} by another structure than transformers' ({path}): pass --engine transformers"
        ) from None
    if count != module.config.get_text_config().num_hidden_layers:
        raise UserError(f"vLLM runs {name} with {count} blocks: pass --engine transformers")
    engine = Engine(transport, stream, options.requests)
    engine.check(module.config.get_text_config().hidden_size, name)
    return engine


def type_name(dtype: Any) -> str:
    """torch's type, or its name, as vLLM calls it; bfloat16 where a config says none."""
    return str(dtype or "bfloat16").removeprefix("torch.")
