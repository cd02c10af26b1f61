"""How a run was made, and what was left out of it: enough to make it again and to doubt it."""

import re
from hashlib import sha256
from typing import Any

import polars as pl

from data.store.rundir import Record
from reports.page import wording as say
from reports.page.blocks import Block, Code, Prose, Section, Table
from reports.page.run import Run
from reports.scoring.leading import trust

COUNTS = "Verdicts by scorer and data set"


def left_out(run: Run) -> Section | None:
    """Rows that count in no rate, and why; verdicts that are missing."""
    scores = run.table("scores")
    if scores is None:
        return None
    fitted, given = pl.col("fitted").fill_null(False), pl.col("verdict").is_not_null()
    ranked = scores.sort(pl.Series(map(trust, scores["scorer"])), maintain_order=True)
    counts = ranked.group_by("dataset", "scorer", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("answers"),
        (~fitted & given).sum().cast(pl.Int64).alias("counted"),
        fitted.sum().cast(pl.Int64).alias("fitted"),
        (~fitted & ~given).sum().cast(pl.Int64).alias("failed"),
        (~fitted & (pl.col("verdict") == "broken")).sum().cast(pl.Int64).alias("broken"),
        (~fitted & pl.col("label").is_null()).sum().cast(pl.Int64).alias("unlabelled"),
    )
    shown = say.table_of(
        counts,
        ("scorer", say.name, "scorer"),
        ("data set", say.name, "dataset"),
        ("answers", say.number, "answers"),
        ("counted", say.number, "counted"),
        ("used for fitting", say.number, "fitted"),
        ("no verdict", say.number, "failed"),
        ("counted, but broken", say.number, "broken"),
        ("no label", say.number, "unlabelled"),
    )
    dropped = int((counts["fitted"] + counts["failed"]).sum())
    every = say.counted(scores.height, "verdict")
    told = f"{dropped:,} of {every} count in no rate." if dropped else f"Nothing: all {every} count."
    text = (
        f"{told} A prompt whose text was used to "
        "fit vectors, to train a probe or to choose a strength is answered but not counted. No verdict: the "
        "scorer failed, or does not apply to the answer (a token scorer, where an answer opens with no control token)."
    )
    table = Table("left-out", counts, shown, COUNTS, folded=not dropped)
    return Section("left-out", "What was left out", [Prose(text), table])


def provenance(run: Run) -> Section | None:
    """Commands, models, data, seeds, versions."""
    if not run.records:
        return None
    entries = sorted(run.records.items(), key=lambda item: str(item[1].get("start")))
    commands = list(dict.fromkeys(str(entry["command"]) for _, entry in entries if entry.get("command")))
    again = Prose("To make it again, from the project's folder:"), Code("\n".join(map(say.visible, commands)))
    blocks: list[Block] = [*again] if commands else []
    blocks += [artefacts(entries), models(entries), versions(entries)]
    return Section("provenance", "How it was made", blocks)


def artefacts(entries: list[tuple[str, Record]]) -> Table:
    """One row an artefact."""
    rows = [
        (name, _text(entry.get("model")), ", ".join(map(str, data)) if isinstance(data := entry.get("data"), list) else _text(data),
         _options(entry.get("options")), *(_text(entry.get(field)) for field in ("seed", "backend", "end")))
        for name, entry in entries
    ]  # fmt: skip
    heads = ("artefact", "model", "data", "options", "seed", "where", "made")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(heads, pl.String), orient="row")
    shown = frame.with_columns(say.column(frame, _moment, "made").alias("made"))
    return Table("artefacts", frame, shown, "Artefacts", ("options",))


def models(entries: list[tuple[str, Record]]) -> Table:
    """Each model with its revision, type and template; and how prompts were put, where another way was asked for."""
    columns = ["model", "revision", "dtype", "template", "tokenizer"]
    told = [entry | {"prompt format": _put(entry.get("prompt_format"))} for _, entry in entries if entry.get("model")]
    if any(entry["prompt format"] for entry in told):
        columns.insert(3, "prompt format")
        told = [entry | {"prompt format": entry["prompt format"] or "the tokenizer's"} for entry in told]
    rows = {tuple(_text(entry.get(name)) for name in columns) for entry in told}
    frame = pl.DataFrame(sorted(rows, key=str), schema=dict.fromkeys(columns, pl.String), orient="row")
    shown = frame.with_columns(pl.col("template", "tokenizer").str.slice(0, 12))
    shown = shown.rename({"template": "template (SHA-256)", "tokenizer": "tokenizer (SHA-256)"})
    return Table("models", frame, shown, "Models")


def versions(entries: list[tuple[str, Record]]) -> Table:
    """Packages; a second column of numbers where artefacts were made with different ones."""
    found: dict[str, dict[str, None]] = {}
    for _, entry in entries:
        if isinstance(entry.get("versions"), dict):
            for package, number in entry["versions"].items():
                found.setdefault(str(package), {})[str(number)] = None
    frame = pl.DataFrame(
        {"package": list(found), "version": [", ".join(numbers) for numbers in found.values()]},
        schema={"package": pl.String, "version": pl.String},
    )
    return Table("versions", frame, None, "Versions (all pins are in requirements.txt)")


def _moment(told: str | None) -> str | None:
    """A time on one line, to the minute: 2026-01-31 13:07 UTC."""
    found = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d:\d\d):\d\d\+00:00", told or "")
    return told if found is None else f"{found[1]}\u2011{found[2]}\u2011{found[3]}\u00a0{found[4]}\u00a0UTC"


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _put(made: Any) -> str:
    """A prompt format as recorded, in words; a template of a file by its hash."""
    if not isinstance(made, dict):
        return ""
    file = made.get("template")
    words = [f"template {sha256(str(file).encode()).hexdigest()[:12]}" if file else str(made.get("name", ""))]
    words += [f"system {made['system']!r}"] if made.get("system") else []
    words += [f"{'' if made['thinking'] else 'no '}thinking"] if made.get("thinking") is not None else []
    words += [f"date {made['date']}"] if made.get("date") else []
    return ", ".join(filter(None, words))


def _options(options: Any) -> str:
    if not isinstance(options, dict):
        return ""
    return ", ".join(
        f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in options.items()
    )
