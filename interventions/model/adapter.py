"""Refusal-token adapters: a folder with a LoRA, its control tokens and its template, and a model made of one.

peft is imported only where an adapter is opened.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from data.errors import UserError, cause_of
from interventions.model.foreign.checkpoint import every_weight
from interventions.model.tokenizer_files import RECORD_FILE, read_places, write_places, write_tokenizer
from interventions.model.vocabulary import ControlToken

WEIGHTS, CONFIG, TEMPLATE = "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"


def save_adapter(
    peft_model: Any, control_tokens: tuple[ControlToken, ...], template: str, base: str, folder: Path
) -> None:
    """Write a bare peft adapter, weights in float16, with its control tokens and chat template.

    Args:
        peft_model: The trained model.
        control_tokens: Its control tokens.
        template: Its chat template.
        base: Name of the base model, for the adapter's config.
        folder: An existing folder.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    half = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in sorted(state.items())}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})
    config = {name: _plain(value) for name, value in peft_model.peft_config["default"].to_dict().items()}
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_places(control_tokens, folder)
    (folder / TEMPLATE).write_text(template, "utf-8")


def _plain(value: Any) -> Any:
    """A config value as JSON, sets in order: their own order changes from run to run."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value if isinstance(value, (str, int, float, list, dict, type(None))) else str(value)


def adapter_hash(folder: Path) -> str:
    """The first twelve digits of a SHA-256 over all that a merged model depends on."""
    digest = hashlib.sha256()
    for name in (CONFIG, RECORD_FILE, TEMPLATE, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:12]


def merge(base: str, adapter: Path, folder: Path) -> None:
    """Fill a folder with the model that an adapter makes of its base, in the base's own type.

    Args:
        base: Hub id or folder of the base model.
        adapter: A folder that `save_adapter` wrote.
        folder: An existing folder.

    Raises:
        UserError: The adapter is none, or was made for another model.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    control_tokens, template = read_places(adapter), (adapter / TEMPLATE).read_text("utf-8")
    with every_weight(base):
        module = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    grow(module, control_tokens)
    try:
        merged: Any = PeftModel.from_pretrained(module, str(adapter)).merge_and_unload()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{adapter} does not fit {base}: {cause_of(error)}") from error
    merged.config._name_or_path = ""  # would be this machine's path
    merged.save_pretrained(folder)
    write_tokenizer(AutoTokenizer.from_pretrained(base, trust_remote_code=False), control_tokens, template, folder)


def grow(module: Any, control_tokens: tuple[ControlToken, ...]) -> bool:
    """Give the vocabulary rows for control tokens that lie beyond its end; says whether it had to."""
    rows = max(token.id for token in control_tokens) + 1
    if rows <= module.get_input_embeddings().weight.shape[0]:
        return False
    module.resize_token_embeddings(rows, mean_resizing=False)  # each new row is set or loaded, none is drawn
    return True
