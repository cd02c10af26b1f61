"""Every file of a run directory in every kind of damage: named in a line and not used, or made again as it was."""

import json
import random
from pathlib import Path

import pytest

from tests.faults.suite import EVERY, SEED, Cases, Place, differing, holds, some

FILES = {  # of a run directory -> the commands that read them
    "activations/prompts.safetensors": ("vectors", "probe", "lowrank", "report"),
    "activations/prompts.parquet": ("vectors", "probe", "lowrank", "generate", "evaluate", "report"),
    "activations/diff-base/prompts.safetensors": ("diff",),
    "activations/diff-tuned/pairs.parquet": ("diff",),
    "vectors.safetensors": ("vectors", "trace", "generate", "sweep", "export", "bake", "report"),
    "logit_lens.parquet": ("vectors", "report"),
    "probe.safetensors": ("probe", "generate", "report"),
    "probe_quality.parquet": ("probe", "report"),
    "probe_roc.parquet": ("probe", "report"),
    "lowrank.safetensors": ("lowrank", "generate"),
    "lowrank_training.parquet": ("lowrank",),
    "traces.parquet": ("trace", "report"),
    "generations.parquet": ("generate", "evaluate", "report"),
    "scores.parquet": ("evaluate", "report"),
    "summary.parquet": ("evaluate", "report"),
    "effects.parquet": ("effects", "report"),
    "sweep.parquet": ("sweep", "report"),
    "sweep_prompts.parquet": ("sweep",),
    "diff.parquet": ("diff", "report"),
    "category.parquet": ("category", "report"),
    "category_test.parquet": ("category",),
    "methods/affine.safetensors": ("affine",),
    "gates/words.safetensors": ("gate",),
    "gates/words_quality.parquet": ("gate", "report"),
    "model/model.safetensors": ("finetune",),
}


# What was made of these stands, so that the command is done without a look at them.
UNREAD = {
    ("activations/prompts.parquet", "evaluate"),
    ("activations/diff-base/prompts.safetensors", "diff"),
    ("activations/diff-tuned/pairs.parquet", "diff"),
}


def halved(path: Path, _place: Place) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path, _place: Place) -> None:
    path.write_bytes(b"")


def zeroed(path: Path, _place: Place) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lengthened(path: Path, _place: Place) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def one_bit(path: Path, _place: Place) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(f"{SEED} {path.name}").randrange(len(content))] ^= 1
    path.write_bytes(content)


def words(path: Path, _place: Place) -> None:
    path.write_text("\x1b[2J<script>alert(1)</script>\n" * 20)


def gone(path: Path, _place: Place) -> None:
    path.unlink()


def a_folder(path: Path, _place: Place) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path, place: Place) -> None:
    path.unlink()
    path.symlink_to(place.root / "rows.jsonl")


DAMAGES = (halved, emptied, zeroed, lengthened, one_bit, words, gone, a_folder, a_link)


@pytest.mark.parametrize("name", some(list(FILES), 8))
def test_no_damage_goes_unsaid(place: Place, name: str, case: Cases) -> None:
    others = place.others
    cases = some([(command, damage) for command in FILES[name] for damage in DAMAGES], 3)
    for command, damage in cases:
        folder = place.copy(place.whole)
        path = folder / name
        damage(path, place)
        with case("damaged files"):
            done = place.zygote.run(place.words(command, folder))
            holds(done, folder)
            told = f"{name}, {damage.__name__}, {command}: exit {done.code}, {done.err.splitlines()[-1:]}"
            if done.code == 1:
                assert path.name.partition(".")[0] in done.err, f"not named: {told}"
            elif done.code == 0 and command == "report":
                assert damage is gone or path.name in done.err, f"not said: {told}"
            elif done.code == 0:
                odd = [one for one in differing(place.whole, folder) if (damage is not gone or command in one)
                       and not ((name, command) in UNREAD and one.startswith(name))]  # fmt: skip
                assert not odd, f"wrong: {told}: {odd}"
    assert place.others == others


def leaves(value, path=()):
    """Every place of a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from leaves(inner, (*path, key))


def put(value, path, new) -> None:
    for key in path[:-1]:
        value = value[key]
    if new is ...:
        del value[path[-1]]
    else:
        value[path[-1]] = new


def test_nested_damage_of_records(place: Place, case: Cases) -> None:
    whole = json.loads((place.whole / "run.json").read_text())
    every = [(path, new) for path in leaves(whole) if path for new in (..., None, [], {}, 7, "x", [[]])]
    cases = some(every, 8) if not EVERY else random.Random(SEED).sample(every, 100)
    random_, others = random.Random(SEED), place.others
    for path, new in cases:
        folder = place.copy(place.whole)
        value = json.loads((place.whole / "run.json").read_text())
        put(value, path, new)
        (folder / "run.json").write_text(json.dumps(value))
        command = random_.choice(("vectors", "generate", "evaluate", "report", "trace"))
        with case("damaged files"):
            done = place.zygote.run(place.words(command, folder))
            holds(done, folder)
            assert not any(f"{kind}Error" in done.err for kind in ("Type", "Key", "Attribute")), (path, new, done.err)
    assert place.others == others


@pytest.mark.parametrize("name", [".digests.json", ".lock"])
def test_hidden_files_may_be_anything(place: Place, name: str, case: Cases) -> None:
    for content in (b"", b"[]", b"\xff\xfe\x00", b'{"vectors.safetensors": {"sha256": 3, "stat": "x"}}'):
        folder = place.copy(place.whole)
        (folder / name).write_bytes(content)
        with case("damaged files"):
            done = place.zygote.run(place.words("generate", folder))
            holds(done, folder, codes=(0,))
            assert differing(place.whole, folder) == []
