"""`evaluate`: answers to scores and rates."""

import hashlib
from typing import TYPE_CHECKING, Any

from commands.framework.answers import asked_rows
from commands.framework.app import Session, command
from commands.framework.artefacts import GENERATIONS, SCORES, SUMMARY, VECTORS, need
from commands.framework.options import SCORING
from commands.framework.output import Summary, warn
from commands.framework.prompts import sources_of
from commands.framework.records import Key, identity, note, unchanged
from commands.framework.seen import asked_themes, fitted_texts
from commands.framework.settings import Record, Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


@command(*SCORING)
def evaluate(session: Session, s: Settings) -> Summary:
    """Score answers and summarise them with intervals."""
    import polars as pl

    from data.store.rundir import now, records
    from data.store.tables import write_table
    from reports.scoring.scores import repeated, score
    from reports.statistics.summary import summarise

    if "judge" in s.get("scorer") and not s.get("judge_model"):
        raise UserError("--scorer judge: which model? pass --judge-model NAME")
    start = now()
    whole, record = need(session, s, GENERATIONS)
    generations = asked_rows(s, whole, record)
    scorers, asked = assembled(s, generations)
    key = {"generations": record["id"], "fitted": records(s.run).get(VECTORS.name, {}).get("id"), "seed": s.get("seed")}
    if generations.height < whole.height:
        key["answers"] = identity({"rows": generations.select("dataset", "id", "arm").rows()})
    themes, lost = clusters(s, record, generations)
    key |= asked | {"difference": s.get("difference"), "without themes": lost}
    if own := own_themes(s, themes):
        key["themes"] = own
    path = SUMMARY.path(s.run)
    if not failed(s) and unchanged(s, SCORES, key) and unchanged(s, SUMMARY, key):
        summary = SUMMARY.read(s.run)
    else:
        scores = score(generations, fitted_texts(s, record["key"]), scorers)
        if list(scorers) == ["judge"] and generations.height and scores["verdict"].is_null().all():
            raise UserError("the judge gave no verdict at all: nothing is evaluated; what it said stands above")
        scores = scores.join(themes, on=["dataset", "id"], how="left", maintain_order="left")
        twice = repeated(generations)
        for (name, first), rows in twice.group_by("dataset", "first", maintain_order=True):
            warn(f"{rows.height} prompts of {name} stand in {first} too: (pooled) counts them once")
        summary = summarise(scores, key["seed"], themes, key["difference"] / 100, twice)
        for artefact, table in ((SCORES, scores), (SUMMARY, summary)):
            write_table(artefact.path(s.run), table)
            note(s, artefact, key, record, start)
        warn_of_none(summary)
    if summary.filter(pl.col("n") > 0).is_empty() and not summary["n_failed"].sum():
        warn("every answer's prompt was used for fitting: nothing is left to evaluate")
    shown = summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"])).select(
        *("dataset", "label", "arm", "scorer", "n", "rate", "low", "high", "delta", "p_holm", "broken"),
        *("delta_low", "delta_high"),
    )
    return {"answers": generations.height, "table": shown, "wrote": str(path)}


def warn_of_none(summary: "pl.DataFrame") -> None:
    """Say that there is no refusal that an arm could take away: rates of nothing look like a result."""
    import polars as pl

    unsteered = summary.filter(pl.col("arm") == "baseline", pl.col("n") > 0)
    if unsteered.height and not unsteered["refused"].sum():
        warn("the unsteered model declined none of these prompts: steering away from refusal has nothing to take away here; try "
             "prompts that it declines, another --scorer, or a model that refuses")  # fmt: skip


def own_themes(s: Settings, themes: "pl.DataFrame") -> str:
    """What tells the themes apart that files of the run give their rows; empty where none does."""
    from data.prompts.reading import is_file

    if themes["theme"].is_null().all() or not any(is_file(source) for source in sources_of(s)):
        return ""
    return identity({"rows": themes.rows()})


def assembled(s: Settings, generations: "pl.DataFrame") -> tuple[dict[str, Any], Key]:
    """The scorers that were asked for, and what tells them apart in a record; no key or address with one in it."""
    from reports.scoring.assemble import assemble
    from reports.scoring.classifier import parse_labels
    from reports.scoring.hand import write_sample
    from reports.scoring.judge import Judge, shown
    from reports.scoring.lexical import NAME, TAUGHT

    judge = None
    if s.get("judge_model"):
        judge = Judge(s.get("judge_model"), s.get("judge_url"), s.get("judge_concurrency"), s.get("judge_timeout"))
    hand = s.get("hand")
    if hand is not None and not hand.exists():
        count = write_sample(generations, hand, seed=s.get("seed"))
        warn(f"wrote {count} answers to label by hand into {hand}; fill in `verdict` and run evaluate again")
        hand = None
    labels = parse_labels(s.get("classifier_labels")) if s.get("classifier_labels") else None
    names = list(s.get("scorer"))
    taught = not generations.is_empty() and set(generations["model"]) <= set(TAUGHT)
    classifier = s.get("classifier") or (NAME if taught else None)
    scorers = assemble(generations, names, cache=s.run / "judge.jsonl", judge=judge, classifier=classifier,
                       labels=labels, device=s.get("device"), hand=hand)  # fmt: skip
    asked = {
        "scorers": sorted(scorers),
        "judge": [s.get("judge_model"), shown(s.get("judge_url")) if s.get("judge_url") else None] if judge else None,
        "classifier": [classifier, s.get("classifier_labels")],
        "hand": hashlib.sha256(hand.read_bytes()).hexdigest() if hand else None,
    }
    return scorers, asked


def failed(s: Settings) -> bool:
    """Whether a judge failed on some answers last time: those are asked for again."""
    path = SCORES.path(s.run)
    if not path.exists() or not s.get("judge_model"):
        return False
    return SCORES.read(s.run).filter(scorer="judge")["verdict"].has_nulls()


def clusters(s: Settings, record: Record, generations: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """`dataset`, `id`, `theme`: which prompts are siblings, and the data sets that could not be asked.

    Those of data sets that don't change are read again only if the last evaluation of these answers did not find out.
    """
    from data.prompts.reading import is_file
    from data.store.rundir import records

    rows = generations.select("dataset", "id", "prompt").unique(["dataset", "id"], keep="first", maintain_order=True)
    path, before = SCORES.path(s.run), records(s.run).get(SCORES.name, {}).get("key", {})
    own = any(is_file(source) for source in sources_of(s))  # whose themes may have changed
    if not own and before.get("generations") == record["id"] and before.get("without themes") == [] and path.exists():
        known = SCORES.read(s.run).select("dataset", "id", "theme").unique(["dataset", "id"], keep="first")
        if known.height == rows.height:  # a hand scores a sample
            return known, []
    return asked_themes(s, rows)
