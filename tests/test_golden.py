"""What every command writes on a tiny model, frozen: frames, tensors, metadata and the keys of `run.json`.

Of a frame: its schema, its height, a few rows throughout it, and of every column a checksum of all that is no fraction and
the sum of all fractions, without their signs: so every cell counts, and the file can be read.
`REFUSAL_GOLDEN=write` writes the expectation anew. Numbers are held to one part in a thousand, since machines differ.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors import safe_open

from data.store.digests import LEDGER

GOLDEN = Path(__file__).parent / "golden.json"
ROWS = 6  # shown of a frame
ARMS = ("baseline", "fixed", "routed", "gated", "gated:harmful=0", "lowrank", "ablate", "random", "wrong-category",
        "prompt-only", "logit-bias", "oracle", "fixed:operation=clamp,scope=all", "logit-bias:category=respond,strength=2")  # fmt: skip


@pytest.fixture(scope="module")
def rows(prompts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forty prompts, each in a split; and answers, for fine-tuning."""
    path = tmp_path_factory.mktemp("rows") / "split.jsonl"
    split = ("train", "train", "train", "validation", "test")
    frame = pl.read_ndjson(prompts_file).with_columns(
        split=pl.Series([split[at // 4 % 5] for at in range(40)]), response=pl.lit("please tell me the best")
    )
    frame.write_ndjson(path)
    return path


def plain(value: Any, folders: dict[str, str]) -> Any:
    """JSON without this run's folders, hashes of folders, and times."""
    if isinstance(value, dict):
        return {plain(name, folders): plain(part, folders) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part, folders) for part in value]
    if isinstance(value, str):
        for folder, name in folders.items():
            value = value.replace(folder, name)
        return re.sub(r"\b[0-9a-f]{12,64}\b", "HASH", value)
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value


def frame_of(path: Path) -> Any:
    frame = pl.read_parquet(path)
    return {"schema": {name: str(kind) for name, kind in frame.schema.items()}, "rows": frame.rows()}


def leaves(value: Any) -> Iterator[Any]:
    """What a piece of JSON holds, in its order; a dictionary's keys too."""
    if isinstance(value, (list, dict)):
        for part in value.items() if isinstance(value, dict) else value:
            yield from leaves(list(part) if isinstance(part, tuple) else part)
    else:
        yield value


def is_fraction(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def slim(frame: Any) -> Any:
    """A frame's few rows, and what says that the others are as they were."""
    columns = {}
    for at, name in enumerate(frame["schema"]):
        held = list(leaves([row[at] for row in frame["rows"]]))
        words = json.dumps(["fraction" if is_fraction(one) else one for one in held])
        columns[name] = [zlib.crc32(words.encode()), float(f"{sum(abs(one) for one in held if is_fraction(one)):.5g}")]
    rows = frame["rows"]
    return frame | {"height": len(rows), "rows": rows[:: -(-len(rows) // ROWS) or 1], "columns": columns}


def tensors_of(path: Path) -> Any:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118  # no mapping
    figures = {name: [*tensor.shape, tensor.sum().item(), tensor.norm().item()] for name, tensor in tensors.items()}
    return {"metadata": metadata, "tensors": figures}


def records_of(folder: Path) -> Any:
    artefacts = json.loads((folder / "run.json").read_text())["artefacts"]
    return {
        name: {"fields": sorted(entry), "key": entry["key"], "options": entry["options"]}
        for name, entry in artefacts.items()
    }


def held(folder: Path, folders: dict[str, str]) -> dict[str, Any]:
    """All that a run directory holds."""
    found: dict[str, Any] = {"run.json": records_of(folder)}
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"-[0-9a-f]{6}\.", "-ID.", str(path.relative_to(folder)))
        if path.suffix == ".parquet":
            found[name] = frame_of(path)
        elif path.suffix == ".safetensors" and "model" not in name and "baked" not in name:
            found[name] = tensors_of(path)
        elif path.is_file() and path.name != LEDGER:
            found[name] = None
    found = plain(json.loads(json.dumps(found)), folders)
    return {name: slim(part) if name.endswith(".parquet") else part for name, part in found.items()}


def differences(want: Any, got: Any, place: str = "") -> list[str]:
    """Where two pieces of JSON differ."""
    if isinstance(want, dict) and isinstance(got, dict):
        odd = [f"{place}: {name} is {'missing' if name in want else 'new'}" for name in set(want) ^ set(got)]
        return odd + [
            line for name in set(want) & set(got) for line in differences(want[name], got[name], f"{place}/{name}")
        ]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return [
            line for at, pair in enumerate(zip(want, got, strict=True)) for line in differences(*pair, f"{place}[{at}]")
        ]
    if isinstance(want, float) and isinstance(got, (int, float)):
        same = math.isclose(want, got, rel_tol=1e-3, abs_tol=1e-5)
    else:
        same = want == got
    return [] if same else [f"{place}: {want!r} became {got!r}"]


def written(value: Any, deep: int = 3) -> str:
    """JSON with a file's parts and a frame's rows a line each, so that a change is a line's."""
    if deep and isinstance(value, dict) and value:
        return (
            "{\n"
            + ",\n".join(f"{json.dumps(name)}: {written(value[name], deep - 1)}" for name in sorted(value))
            + "\n}"
        )
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
    return json.dumps(value, sort_keys=True)


def frozen(name: str, folder: Path, folders: dict[str, str]) -> None:
    now = held(folder, folders)
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("REFUSAL_GOLDEN") == "write":
        GOLDEN.write_text(written(known | {name: now}) + "\n")
        return
    odd = differences(known[name], now)
    assert not odd, "\n".join(odd[:40])


def test_the_chain_writes_what_it_did(run, rows, tiny_tuned_folder, tiny_base_folder, tmp_path):
    folder = tmp_path / "chain"
    folders = {str(folder): "RUN", str(tiny_tuned_folder): "TUNED", str(tiny_base_folder): "BASE", str(rows): "ROWS"}
    # At most 32 padded tokens, so that there is more than one batch.
    group = ("--run", folder, "--model", tiny_tuned_folder, "--data", rows, "--batch-tokens", 32)
    arms = [word for arm in ARMS for word in ("--arm", arm)]
    for words in (
        ("extract", "vectors", "probe", "lowrank", "--epochs", 1, "trace", "--max-new-tokens", 3, "--arm", "gated"),
        ("sweep", "--max-new-tokens", 3, "--strengths", "-0.2,-0.4", "--layers", "1-2"),
        ("generate", *arms, "--layer", 2, "--max-new-tokens", 4, "evaluate"),
        ("effects", "--arm", "fixed", "--arm", "gated", "--max-new-tokens", 3, "--layer", 2),
        ("diff", "--against", tiny_base_folder, "--layers", "1-2"),
        ("export", "--format", "safetensors", "bake", "report"),
    ):
        code, _, err = run(*group, *words)
        assert code == 0, err
    frozen("chain", folder, folders)


def test_contrastive_vectors_and_other_choices_write_what_they_did(run, rows, tiny_tuned_folder, tmp_path):
    folder = tmp_path / "pairs"
    folders = {str(folder): "RUN", str(tiny_tuned_folder): "TUNED", str(rows): "ROWS"}
    group = ("--run", folder, "--model", tiny_tuned_folder, "--data", rows)
    chain = ("vectors", "--method", "contrastive", "probe", "--fit", "mass-mean", "--layer", "auto", "--fpr", 0.2,
             "lowrank", "--mode", "input", "--basis", "published", "generate", "--max-new-tokens", 2, "evaluate")  # fmt: skip
    code, _, err = run(*group, *chain)
    assert code == 0, err
    frozen("pairs", folder, folders)


def test_reproduce_writes_what_it_did(run, rows, tiny_tuned_folder, tmp_path, monkeypatch):
    from tests.made.mirror import put_known

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = [f"please tell me the {word}" for word in ("poem", "painter", "process", "person", "friend", "best")]
    put_known(tmp_path / "mirror", "advbench", prompt=texts)
    put_known(tmp_path / "mirror", "xstest", prompt=[f"{text} ever" for text in texts], type=["a", "b"] * 3,
              label=["safe", "unsafe"] * 3)  # fmt: skip
    recipe = tmp_path / "mine.toml"
    from commands import reproduce

    shipped = reproduce.PAPER.read_text("utf-8")
    recipe.write_text(shipped.replace('data = ["embedded"]', f"data = [{json.dumps(str(rows))}]"))
    folder = tmp_path / "paper"
    folders = {str(folder): "RUN", str(tiny_tuned_folder): "TUNED", str(rows): "ROWS", str(tmp_path): "TMP"}
    code, _, err = run("--run", folder, "--model", tiny_tuned_folder, "--data-mirror", tmp_path / "mirror",
                       "reproduce", "paper", "--config", recipe, "--limit", 4, "--max-new-tokens", 3)  # fmt: skip
    assert code == 0, err
    frozen("reproduce", folder, folders)


def test_finetune_writes_what_it_did(run, rows, tiny_folder, tmp_path):
    folder = tmp_path / "tuned"
    folders = {str(folder): "RUN", str(tiny_folder): "TINY", str(rows): "ROWS"}
    code, _, err = run("--run", folder, "finetune", "--model", tiny_folder, "--data", rows, "--epochs", 1, "--rank", 2,
                       "--batch-tokens", 64)  # fmt: skip
    assert code == 0, err
    frozen("finetune", folder, folders)
