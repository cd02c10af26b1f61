"""Is a checkpoint what it says it is? Its sizes, its index, and after loading whether every weight came out of it.

transformers draws what a checkpoint lacks at random and goes on; a model of which that holds gives other numbers each
time. What it passes over on purpose (tied heads, rotary buffers, parts of other tasks) is fine here too.
"""

import contextlib
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors import SafetensorError, safe_open

from data.errors import UserError

# What the largest models have, ten times over.
MOST = {"num_hidden_layers": 2_000, "hidden_size": 1 << 18, "vocab_size": 1 << 24, "intermediate_size": 1 << 21,
        "num_attention_heads": 1 << 13, "num_key_value_heads": 1 << 13, "head_dim": 1 << 14}  # fmt: skip
MOST_SETTINGS = 64 << 20  # bytes of a JSON file of settings; a tokenizer may have more
MOST_TEMPLATE = 1 << 20  # bytes of a chat template
MEND = "fetch the checkpoint again"
SAMPLES, SAMPLE = 1024, 4096
WEIGHTS = ("*.safetensors", "*.bin")
PARAMETERS_A_BYTE = 8  # at most, of the smallest quantisation


def check_kind(path: Path) -> None:
    """Is a path a model's folder, or something else that models come in?

    Raises:
        UserError: An adapter, or a GGUF file; with how to make a model folder of it.
    """
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    gguf = path if path.is_file() and path.suffix == ".gguf" else files[0] if files else None
    if gguf is not None:
        raise UserError(f"{gguf} is a GGUF file: make a model folder of it with transformers, AutoModelForCausalLM and AutoTokenizer."
                        f"from_pretrained({str(gguf.parent)!r}, gguf_file={gguf.name!r}), and save_pretrained(FOLDER) of both")  # fmt: skip
    settings = path / "adapter_config.json"
    if settings.is_file() and not (path / "config.json").exists():
        if (path.parent / "config.json").exists():
            raise UserError(f"{path} is an adapter; the model that it makes is {path.parent}: pass that as --model")
        base = _setting(settings, "base_model_name_or_path") or "its base"
        raise UserError(f"{path} is an adapter of {base}, and no model: merge it with peft, AutoPeftModelForCausalLM.from_pretrained("
                        f"{str(path)!r}).merge_and_unload().save_pretrained(FOLDER), and save the tokenizer there too")  # fmt: skip


def quantised(folder: Path) -> str:
    """By which method a model folder's weights are quantised; empty where they are not."""
    found = _setting(folder / "config.json", "quantization_config")
    return str(found.get("quant_method") or "unknown method")[:40] if isinstance(found, dict) else ""


def _setting(path: Path, name: str) -> Any:
    """A setting of a JSON file of them; None where there is none."""
    try:
        return json.loads(path.read_text("utf-8")).get(name) if path.stat().st_size <= MOST_SETTINGS else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def check_files(folder: Path) -> None:
    """May a model folder's settings be read: small enough, and its index of weights one of files in this folder?

    Raises:
        UserError: They are not; the file is named.
    """
    for name, most in (("config.json", MOST_SETTINGS), ("generation_config.json", MOST_SETTINGS),
                       ("tokenizer_config.json", MOST_SETTINGS), ("chat_template.jinja", MOST_TEMPLATE)):  # fmt: skip
        path = folder / name
        if path.exists() and (not path.is_file() or path.stat().st_size > most):
            raise UserError(f"{path}: no file of at most {most >> 20} MB, as such a file is")
    for path in sorted(folder.glob("*.index.json")):
        index = _index(path)
        for weight, name in index.items():
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise UserError(
                    f"{path}: {weight} should be in {str(name)[:100]!r}, which is no file of that folder; {MEND}"
                )
        for name in sorted({name for name in index.values() if name.endswith(".safetensors")}):
            _check_shard(folder / name, {weight for weight, where in index.items() if where == name}, path.name)


def _check_shard(path: Path, named: set[str], index: str) -> None:
    """Are in a file of weights just those that the index says?"""
    try:
        with safe_open(path, "np") as file:
            held = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable file of weights ({error}); {MEND}") from None
    if odd := named ^ held:
        raise UserError(f"{path}: {index} names {len(named)} weights, the file has {len(held)}, and only one of them "
                        f"{min(odd)}; {MEND}")  # fmt: skip


def _index(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: no index of weights; {MEND}") from None


def check_sizes(config: Any, name: str, folder: Path | None) -> None:
    """Are a model's sizes possible, and are there weights for them? Asked before anything is built.

    Raises:
        UserError: They are not.
    """
    text = config.get_text_config()
    for field, most in MOST.items():
        size = getattr(text, field, None)
        for one in size if isinstance(size, list) else [size]:
            if one is not None and (not isinstance(one, int) or not 0 < one <= most):
                raise UserError(f"{name}: its config's {field} is {str(one)[:40]}, where 1 to {most} are possible")
    if folder is None:
        return
    weights = sum(path.stat().st_size for kind in WEIGHTS for path in folder.glob(kind))
    rough = getattr(text, "vocab_size", 0) * getattr(text, "hidden_size", 0)
    rough += getattr(text, "num_hidden_layers", 0) * getattr(text, "hidden_size", 0) ** 2
    if weights and rough > weights * PARAMETERS_A_BYTE:
        raise UserError(f"{name}: its config is of a model far larger than its weights, {weights / 1e6:.1f} MB; "
                        f"{MEND}")  # fmt: skip


@contextlib.contextmanager
def every_weight(name: str) -> Iterator[None]:
    """While it lasts, what transformers loads is watched; at the end it is refused unless all of it was in the checkpoint.

    Raises:
        UserError: A weight is missing, is too many or has another shape; the first is named.
    """
    from transformers import modeling_utils

    reports: list[Any] = []

    def keep(*_: Any, loading_info: Any, **__: Any) -> None:
        reports.append(loading_info)

    # Its own would log a table of many lines, and raise in some of the cases.
    with patch.object(modeling_utils, "log_state_dict_report", keep):
        yield
    if reports:
        _refuse(reports[-1], name)


def _refuse(report: Any, name: str) -> None:
    for kind, keys in (("lacks", report.missing_keys), ("has", report.unexpected_keys)):
        if keys:
            first, more = min(keys), f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            told = "weights of its model" if kind == "lacks" else "weights that its model has no place for"
            raise UserError(f"{name}: the checkpoint {kind} {told}, {first}{more}; {MEND}")
    for key, found, wanted in sorted(report.mismatched_keys):
        raise UserError(f"{name}: {key} is {tuple(found)} in the checkpoint, {tuple(wanted)} in its config; {MEND}")
    for told in [*report.error_msgs, *report.conversion_errors.values()]:
        raise UserError(f"{name}: the checkpoint can't be loaded ({' '.join(str(told).split())[:200]}); {MEND}")


def folder_revision(folder: Path) -> str:
    """The first sixteen digits of a SHA-256 over a model folder's settings, and over the weights in samples.

    Of each weight file its size, its beginning, its end and 1,024 evenly spread pieces of 4 KB count, which meet every
    large matrix: other weights have another revision, copied ones the same, and 100 GB take no longer than 1.
    """
    digest = sha256()
    for file in sorted({*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.model")}):
        digest.update(f"{file.name} ".encode() + sha256(file.read_bytes()).digest())
    for file in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as weights:
            for number in range(SAMPLES + 1):
                weights.seek(max(0, size - SAMPLE) * number // SAMPLES)
                digest.update(weights.read(SAMPLE))
    return digest.hexdigest()[:16]
