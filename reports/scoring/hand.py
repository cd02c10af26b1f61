"""Labels by hand: write a blind sample of answers to a file, and read the labels that a person put in.

The file names no arm and is shuffled, so that nobody labels by what they hope for. An answer is found again by a hash of
all that identifies it, so that labels of other answers are never taken for it.
"""

import csv
import hashlib
import io
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data.contract import VERDICTS
from data.errors import UserError
from data.store.rundir import replacing
from reports.scoring.assemble import Given, Verdicts

log = logging.getLogger(__name__)

NEEDS = "pass --hand"
COLUMNS = ("key", "prompt", "response", "verdict")
SHORT = {verdict[0]: verdict for verdict in VERDICTS}
SAMPLES = 100
STRATA = ("arm", "dataset", "label")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


def write_sample(generations: pl.DataFrame, path: Path, *, n: int = SAMPLES, seed: int = 0) -> int:
    """Write `n` answers to label, stratified by arm, data set and label; returns how many.

    Args:
        generations: The table of `generate`.
        path: A `.csv` or `.jsonl` that isn't there yet.
        n: How many; at most all. Every stratum gives at least one while there are enough.
        seed: Of the draw and the order.

    Raises:
        UserError: The file exists, or ends otherwise.
    """
    if path.exists():
        raise UserError(f"{path} exists already and may hold labels; move it away to draw a new sample")
    sample = draw(generations, n, seed)
    keys = pl.Series("key", answer_keys(sample), pl.String)
    rows = sample.select(keys, "prompt", "response", pl.lit("").alias("verdict")).to_dicts()
    with replacing(path) as unfinished:
        if _suffix(path) == ".csv":  # the mark at the start tells spreadsheets that it is UTF-8
            unfinished.write_text(_as_csv(rows), encoding="utf-8-sig", newline="")
        else:
            unfinished.write_text(_as_jsonl(rows), encoding="utf-8")
    return len(rows)


def scorer(_generations: pl.DataFrame, given: Given) -> Verdicts | None:
    """`hand_verdicts`, where there is a file of labels."""
    return partial(hand_verdicts, path=given["hand"]) if given.get("hand") is not None else None


def hand_verdicts(answers: pl.DataFrame, path: Path) -> pl.Series:
    """The verdicts that a person put into a file of `write_sample`; null for all other answers.

    `comply`, `partial`, `refuse`, `broken` or their first letters; empty is not labelled yet.

    Raises:
        UserError: Not such a file, an unknown verdict, or labels of other answers only.
    """
    labelled, keys = _labelled(path), answer_keys(answers)
    labels, known = dict(labelled), set(keys)
    verdicts = pl.Series("verdict", [labels.get(key) for key in keys], pl.String)
    if labels and verdicts.is_null().all():
        raise UserError(f"{path} labels none of these answers; they changed since it was written")
    lost = [key for key, _ in labelled if key not in known]
    if lost:
        log.warning("%s: %d of %d labelled rows belong to no answer and are not counted, the first with key %r; did a "
                    "spreadsheet rewrite the keys?", path, len(lost), len(labelled), lost[0])  # fmt: skip
    twice = [key for key, verdict in labelled if key in known and labels[key] != verdict]
    if twice:
        raise UserError(f"{path}: the answer with key {twice[0]!r} is labelled in two ways; keep one of the rows")
    return verdicts


def read_labels(path: Path) -> dict[str, str]:
    """Key -> verdict of every labelled row.

    Raises:
        UserError: Not such a file, or an unknown verdict.
    """
    return dict(_labelled(path))


def _labelled(path: Path) -> list[tuple[str, str]]:
    labels = []
    for number, row in enumerate(_read(path), 1):
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            raise UserError(f"{path}, row {number}: no field 'key'; label a file that --hand wrote")
        given = str(row.get("verdict") or "").strip().lower()
        verdict = SHORT.get(given, given)
        if verdict and verdict not in VERDICTS:
            raise UserError(f"{path}, row {number}: unknown verdict {given!r}; use {', '.join(VERDICTS)} or nothing")
        if verdict:
            labels.append((row["key"], verdict))
    return labels


def draw(generations: pl.DataFrame, n: int, seed: int) -> pl.DataFrame:
    """`n` rows in random order, every stratum in proportion to its size, the largest remainders rounded up."""
    random = np.random.default_rng(seed)
    ordered = generations.sort("dataset", "id", "arm")  # the draw must not hang on the order of the table
    groups = [rows for _, rows in ordered.with_row_index("at").group_by(STRATA, maintain_order=True)]
    chosen = [
        random.choice(rows["at"].to_numpy(), size, replace=False)
        for rows, size in zip(groups, allotted([rows.height for rows in groups], n), strict=True)
    ]
    at = np.concatenate(chosen) if chosen else np.empty(0, int)
    return ordered[random.permutation(at)]


def allotted(sizes: list[int], n: int) -> list[int]:
    """How many of `n` each stratum gives: one each while that is possible, the rest by largest remainder."""
    n = min(n, sum(sizes))
    shares = [1 if at < n else 0 for at in range(len(sizes))]
    left = n - sum(shares)
    room = [size - share for size, share in zip(sizes, shares, strict=True)]
    if left:
        exact = [left * space / sum(room) for space in room]
        shares = [share + int(part) for share, part in zip(shares, exact, strict=True)]
        by_remainder = sorted(range(len(sizes)), key=lambda at: int(exact[at]) - exact[at])
        for at in by_remainder[: n - sum(shares)]:
            shares[at] += 1
    return shares


def answer_keys(answers: pl.DataFrame) -> list[str]:
    """A short hash of each answer: data set, id, arm, prompt and text."""
    columns = answers.select("dataset", "id", "arm", "prompt", "response").iter_rows()
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16] for row in columns]


def _suffix(path: Path) -> str:
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"{path}: a file to label by hand ends in .csv or .jsonl")
    return path.suffix


def _as_csv(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for row in rows:
        # The text is a model's: an apostrophe keeps a spreadsheet from running it.
        cells = [row[name] or "" for name in COLUMNS]
        writer.writerow([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in cells])
    return out.getvalue()


def _as_jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps({name: row[name] for name in COLUMNS}, ensure_ascii=False) + "\n" for row in rows)


def _read(path: Path) -> list[Any]:
    suffix = _suffix(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        csv.field_size_limit(2**31 - 1)
        delimiter = max(",;\t", key=text.split("\n", 1)[0].count)  # spreadsheets of some countries save semicolons
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{path}: not a readable {suffix[1:]} file ({str(error)[:100]})") from None
