"""Verdicts from answers, rates from verdicts, the papers' table and the page from rates."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from commands.evaluate import assembled, check_lengths
from commands.framework.answers import asked_rows
from commands.framework.artefacts import COHERENCE, GENERATIONS, LENGTHS, PAPER_TABLE, SCORES, SUMMARY
from commands.framework.seen import asked_themes, fitted_texts
from commands.framework.settings import Record, Settings
from commands.verifying.outcome import DIFFERS, UNKNOWN, Case, Outcome, frames_apart, kept_columns, settled
from data.contract import MAPS

if TYPE_CHECKING:
    import polars as pl

COMPUTED = ("token", "phrases", "classifier", "hand")  # scorers that say the same of the same answer
ANSWER = ["dataset", "id", "arm", "scorer"]


def evaluated(case: Case, record: Record, scorers: list[str]) -> "tuple[Settings, pl.DataFrame]":
    """The options of an evaluation, without what asks anybody, and the answers that it was of."""
    made = case.as_made(
        record, judge_model=None, scorer=tuple(name for name in scorers if name in COMPUTED), lengths=None
    )
    labels = made.given("hand")
    labels = Path(labels) if labels is not None and Path(labels).exists() else None
    made = made.with_values(hand=labels).for_command("evaluate")
    made.command = "verify"
    answers = asked_rows(made, GENERATIONS.load(GENERATIONS.path(case.run)), case.records[GENERATIONS.name])
    if COHERENCE.name not in case.records:
        return made, answers
    flags = COHERENCE.load(COHERENCE.path(case.run)).select("dataset", "id", "arm", "incoherent")
    return made, answers.join(flags, on=["dataset", "id", "arm"], how="left", maintain_order="left")


def scores(case: Case) -> Iterator[Outcome]:
    """Verdicts of the scorers that always say the same, and which prompts were fitted to."""
    import polars as pl

    from reports.scoring.scores import score

    record, there = case.records[SCORES.name], SCORES.load(SCORES.path(case.run))
    names = there["scorer"].unique(maintain_order=True).to_list()
    for name in (name for name in names if name not in COMPUTED):
        yield Outcome(SCORES.name, name, UNKNOWN, f"{there.filter(scorer=name).height} verdicts of a model that was asked; judge.jsonl has its replies")  # fmt: skip
    made, answers = evaluated(case, record, names)
    if "hand" in names and not _is_labelled(made, record):
        names.remove("hand")
        made = made.with_values(hand=None, scorer=tuple(name for name in made.get("scorer") if name != "hand"))
        yield Outcome(SCORES.name, "hand", UNKNOWN, "the file of labels is not here, or holds others now")
    scorers = assembled(made, answers, None, made.given("hand"))[0] if set(names) & set(COMPUTED) else {}
    again = score(answers, fitted_texts(made, case.records[GENERATIONS.name]["key"]), scorers)
    asked = {row for row in there.filter(~pl.col("scorer").is_in(COMPUTED)).select(ANSWER[:3]).iter_rows()}
    wanted = set(answers.select(ANSWER[:3]).iter_rows())
    if asked and asked != wanted:
        yield Outcome(
            SCORES.name,
            "answers",
            DIFFERS,
            f"{len(asked ^ wanted)} answers of those there are have no verdict, or verdicts no answer",
        )
    columns = ["kind", "category", "label", "verdict", "refused", "fitted"]
    columns += ["incoherent"] if "incoherent" in there.columns else []
    for name in scorers:
        told = frames_apart(there.filter(scorer=name), again.filter(scorer=name).select(*ANSWER, *columns), ANSWER)
        yield settled(SCORES.name, name, told, f"{again.filter(scorer=name).height} verdicts")


def _is_labelled(made: Settings, record: Record) -> bool:
    labels = made.given("hand")
    return labels is not None and hashlib.sha256(labels.read_bytes()).hexdigest() == record["key"].get("hand")


def summary(case: Case) -> Iterator[Outcome]:
    """Rates, intervals and tests from verdicts."""
    from reports.scoring.scores import repeated
    from reports.statistics.summary import KEYS, summarise

    record, verdicts = case.records[SUMMARY.name], SCORES.load(SCORES.path(case.run))
    made, answers = evaluated(case, record, [])
    themes, lost = asked_themes(
        made, answers.select("dataset", "id", "prompt").unique(["dataset", "id"], keep="first", maintain_order=True)
    )
    if lost != record["key"].get("without themes"):
        yield Outcome(
            SUMMARY.name,
            "themes",
            UNKNOWN,
            f"themes of {', '.join(lost) or 'none'} are not known now: intervals over themes may differ",
        )
    again = summarise(
        verdicts.drop("theme", strict=False),
        record["key"]["seed"],
        themes,
        record["key"]["difference"] / 100,
        repeated(answers),
    )
    there = SUMMARY.load(SUMMARY.path(case.run))
    told = frames_apart(there, again, KEYS, only=kept_columns(SUMMARY.name, there, again))
    yield settled(SUMMARY.name, "from scores", told, f"{again.height} rows")


def coherence(case: Case) -> Iterator[Outcome]:
    """Which answers are incoherent, from their log-likelihoods."""
    from reports.statistics.coherence import incoherent

    there = COHERENCE.load(COHERENCE.path(case.run))
    told = frames_apart(there, incoherent(there.drop("floor", "incoherent")), ANSWER[:3])
    yield settled(COHERENCE.name, "from log-likelihoods", told, f"{there.height} answers")


def lengths(case: Case) -> Iterator[Outcome]:
    """Rates at every answer length."""
    import polars as pl

    from reports.scoring.scores import repeated
    from reports.statistics.lengths import GROUP, by_length, score_at

    record, there = case.records[LENGTHS.name], LENGTHS.load(LENGTHS.path(case.run))
    names = [name for name in there["scorer"].unique(maintain_order=True) if name in COMPUTED]
    made, answers = evaluated(case, record, names)
    answers = answers.drop("incoherent", strict=False)
    made = made.with_values(lengths=tuple(record["key"]["lengths"]))
    check_lengths(made, answers, case.records[GENERATIONS.name])
    scorers, fitted = (
        assembled(made, answers, None, made.given("hand"))[0],
        fitted_texts(made, case.records[GENERATIONS.name]["key"]),
    )
    whole = SCORES.load(SCORES.path(case.run)).filter(pl.col("scorer").is_in(names))
    again = by_length(score_at(answers, whole, fitted, scorers, made.get("lengths")), repeated(answers))
    told = frames_apart(there.filter(pl.col("scorer").is_in(names)), again, ["tokens", *GROUP])
    yield settled(LENGTHS.name, "from answers", told, f"{again.height} rows")
    if left := sorted(set(there["scorer"]) - set(names)):
        yield Outcome(LENGTHS.name, ", ".join(left), UNKNOWN, "verdicts of a model that was asked")


def paper(case: Case) -> Iterator[Outcome]:
    """The papers' table beside ours, and the sets' answers in that of all."""
    import polars as pl

    from data.store.tables import read_parquet
    from reports.page.run import open_run
    from reports.page.sections.paper import whole

    missing = case.records[PAPER_TABLE.name].get("missing") or {}
    again = whole(open_run(case.run), missing)[0].frame
    told = frames_apart(PAPER_TABLE.load(PAPER_TABLE.path(case.run)), again, ["dataset", "label"])
    yield settled(PAPER_TABLE.name, "from summary", told, f"{again.height} rows")
    sets = [case.run / f"{name}.parquet" for name in case.records if name.startswith("sets/")]
    if parts := [read_parquet(path) for path in sets if path.exists()]:
        told = frames_apart(
            GENERATIONS.load(GENERATIONS.path(case.run)), pl.concat(parts, how="diagonal"), ["dataset", "id", "arm"]
        )
        yield settled(GENERATIONS.name, "its sets", told, f"{len(parts)} files")


def page(case: Case) -> Iterator[Outcome]:
    """The page, byte by byte, with either map of activations."""
    from reports.page.write import write_report

    there, again = (case.run / "report.html").read_bytes(), case.scratch / "report.html"
    for how in MAPS:
        write_report(case.run, again, map_of_activations=how)
        if again.read_bytes() == there:
            yield settled("report.html", "from tables", "", f"{len(there):,} bytes")
            return
    yield Outcome("report.html", "from tables", DIFFERS, "not the page that these tables give: it was altered, or is of earlier tables or "
                  "another version; report makes it anew")  # fmt: skip
