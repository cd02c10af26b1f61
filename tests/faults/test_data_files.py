"""Files of prompts that mean harm or are none: one line that names them, or rows; soon, in little memory, and no code runs."""

import gzip
import io
import json
import os
import pickle
from pathlib import Path

import polars as pl
import pytest

from tests.faults.suite import MODELS, Cases, Place, holds, some

ROW = (
    '{"prompt": "kill a person", "label": "harmful", "category": "weapons"}\n{"prompt": "tell me", "label": "benign"}\n'
)


class Harm:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/refusal-faults-mark",)


def parquet(**columns) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


TEXTS = {
    "empty": b"",
    "blank": b" \n\n",
    "NUL": b"\0" * 1000,
    "UTF-16": ROW.encode("utf-16"),
    "latin-1": '{"prompt": "\u00e9"}\n'.encode("latin-1"),
    "BOM": b"\xef\xbb\xbf" + ROW.encode(),
    "binary": bytes(range(256)) * 10,
    "pickle": pickle.dumps(Harm()),
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "half a surrogate": b'{"prompt": "a\\ud800b", "label": "benign"}\n',
    "escapes": json.dumps(
        {"prompt": "\x1b[2J\x1b]0;x\x07 tell", "category": "\x1b[31mred", "label": "harmful"}
    ).encode()
    + b"\n"
    + ROW.encode(),
    "a long line": json.dumps({"prompt": "poem " * 200_000, "label": "benign"}).encode(),
    "numbers": b'{"prompt": 1, "label": "benign"}\n',
    "lists": b'{"prompt": ["a"], "label": ["harmful"]}\n',
    "odd label": b'{"prompt": "a", "label": "HARM"}\n',
    "twice the id": b'{"prompt": "a", "id": "1"}\n{"prompt": "b", "id": "1"}\n',
    "half a row": ROW.encode()[:-20],
    "NaN": b'{"prompt": "a", "label": NaN}\n{"prompt": NaN}\n',
    "metadata": b'{"prompt": "a", "category": "__metadata__", "label": "harmful"}\n{"prompt": "b", "label": "benign"}\n',
    "a path": b'{"prompt": "a", "category": "../../../x", "label": "harmful"}\n{"prompt": "b", "label": "benign"}\n',
    "html": b"<html><body>404</body></html>",
    "csv": b'prompt,label\n"a,benign\nb,benign\n',
    "formula": b"prompt,label\n=cmd|' /C calc'!A0,benign\n",
}
ENDINGS = (".jsonl", ".csv", ".txt", ".json", ".tsv")
TABLES = {
    "truncated": parquet(prompt=["a"] * 100)[:-30],
    "header alone": b"PAR1",
    "a pickle": pickle.dumps(Harm()),
    "nested": parquet(prompt=[["a"], ["b"]]),
    "bytes": parquet(prompt=[b"\xff\xfe", b"a"]),
    "dates": parquet(prompt=["a"], label=[None], id=[1.5]),
    "no prompt": parquet(text=["a"]),
    "no rows": parquet(prompt=pl.Series([], dtype=pl.String)),
    "flipped": bytes(byte ^ (at == 40) for at, byte in enumerate(parquet(prompt=["kill a person"] * 50))),
}
FILES = {f"{name}{ending}": content for name, content in TEXTS.items() for ending in ENDINGS}
FILES |= {f"{name}.parquet": content for name, content in TABLES.items()}
FILES |= {
    "bomb.jsonl.gz": gzip.compress(b"\0" * (1 << 28)),
    "cut.jsonl.gz": gzip.compress(ROW.encode())[:-9],
    "none.csv.gz": b"no gzip",
}


def test_hostile_files_of_prompts(bare: Place, tmp_path: Path, case: Cases) -> None:
    mark = Path("/tmp/refusal-faults-mark")
    mark.unlink(missing_ok=True)
    others, cases = bare.others, some(list(FILES), 20)
    for name in cases:
        path = tmp_path / name
        path.write_bytes(FILES[name])
        folder = bare.copy(None)
        words = ["--run", folder, "--model", bare.root / "tuned", "--data", path, "extract", "--layers", "1", "vectors"]
        with case(MODELS):
            done = bare.zygote.run(words)
            holds(done, folder)
            named = any(word in done.err for word in (name.partition(".")[0], "row", "prompt"))
            assert done.code == 0 or named, done
            assert done.seconds < 30, (name, done.seconds)
            assert not mark.exists(), name
    assert bare.others == others


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file(bare: Place, tmp_path: Path, kind: str, case: Cases) -> None:
    path = tmp_path / "rows.txt"
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
     "loop": lambda: path.symlink_to(path)}[kind]()  # fmt: skip
    folder = bare.copy(None)
    with case(MODELS):
        done = bare.zygote.run(["--run", folder, "--model", bare.root / "tuned", "--data", path, "extract"])
        holds(done, folder, codes=(1,))
