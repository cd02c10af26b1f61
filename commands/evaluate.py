"""`evaluate` and `report`: answers to scores, rates and the page."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.framework.app import Session, command
from commands.framework.output import warn
from commands.framework.records import VECTORS, note, unchanged
from commands.framework.seen import asked_themes, fitted_texts
from commands.framework.settings import Settings
from commands.generate import need_generations
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


SCORING = (
    click.option("--scorer", multiple=True, type=click.Choice(["token", "phrases", "judge", "classifier", "hand"]),
                 help="Who scores; repeatable.  [default: all that have what they need]"),
    click.option("--judge-model", help="Model of an OpenAI-compatible endpoint that judges; its key comes from "
                 "REFUSAL_JUDGE_API_KEY or OPENAI_API_KEY.  [default: none]"),
    click.option("--judge-url", help="The endpoint.  [default: OPENAI_BASE_URL, else OpenAI]"),
    click.option("--judge-concurrency", type=click.IntRange(1, 256), help="Questions at once.  [default: 8]"),
    click.option("--classifier", help="Folder or hub id of a text classifier, or embedded: a small one for "
                 "refusal-smollm2.  [default: embedded for refusal-smollm2, else none]"),
    click.option("--classifier-labels", help="CLASS=VERDICT,… where its names don't say it.  [default: none]"),
    click.option("--hand", type=click.Path(dir_okay=False, path_type=Path), help="CSV or JSONL of 100 answers to label by "
                 "hand: written if it is missing, else read.  [default: none]"),
    click.option("--difference", type=click.FloatRange(0, 100, min_open=True), help="Points: how many prompts would such "
                 "a difference need?  [default: 5]"),
)  # fmt: skip


@command(*SCORING)
def evaluate(session: Session, s: Settings) -> dict[str, Any]:
    """Score answers and summarise them with intervals."""
    return make_summary(session, s)


def make_summary(session: Session, s: Settings) -> dict[str, Any]:
    """Score the answers, which are made if they are missing, and summarise them."""
    import polars as pl

    from data.store.rundir import now, records, replacing
    from reports.scoring.scores import score
    from reports.statistics.summary import summarise

    if "judge" in s.get("scorer", ()) and not s.get("judge_model"):
        raise UserError("--scorer judge: which model? pass --judge-model NAME")
    start = now()
    record = need_generations(session, s)
    generations = pl.read_parquet(s.run / "generations.parquet")
    scorers, asked = assembled(s, generations)
    key = {"generations": record["id"], "fitted": records(s.run).get(VECTORS, {}).get("id"), "seed": s.get("seed", 0)}
    themes, lost = clusters(s, record, generations)
    key |= asked | {"difference": s.get("difference", 5.0), "without themes": lost}
    path = s.run / "summary.parquet"
    if not failed(s) and unchanged(s, "scores", key, s.run / "scores.parquet") and unchanged(s, "summary", key, path):
        summary = pl.read_parquet(path)
    else:
        scores = score(generations, fitted_texts(s, record), scorers)
        scores = scores.join(themes, on=["dataset", "id"], how="left", maintain_order="left")
        summary = summarise(scores, key["seed"], themes, key["difference"] / 100)
        for name, table in (("scores", scores), ("summary", summary)):
            with replacing(s.run / f"{name}.parquet") as unfinished:
                table.write_parquet(unfinished)
            note(s, name, key, None, start, like=record, options=s.given())
    if summary.filter(pl.col("n") > 0).is_empty():
        warn("every answer's prompt was used for fitting: nothing is left to evaluate")
    shown = summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"])).select(
        "dataset",
        "label",
        "arm",
        "scorer",
        "n",
        "rate",
        "low",
        "high",
        "broken",
        "delta",
        "delta_low",
        "delta_high",
        "p_holm",
    )
    return {"answers": generations.height, "table": shown, "wrote": str(path)}


def assembled(s: Settings, generations: "pl.DataFrame") -> tuple[dict[str, Any], dict[str, Any]]:
    """The scorers that were asked for, and what tells them apart in a record; no key or address with one in it."""
    from reports.scoring.assemble import assemble
    from reports.scoring.classifier import parse_labels
    from reports.scoring.hand import write_sample
    from reports.scoring.judge import Judge, shown
    from reports.scoring.lexical import NAME, TAUGHT

    judge = None
    if s.get("judge_model"):
        judge = Judge(s.get("judge_model"), s.get("judge_url"), s.get("judge_concurrency", 8))
    hand = s.get("hand")
    if hand is not None and not hand.exists():
        count = write_sample(generations, hand, seed=s.get("seed", 0))
        warn(f"wrote {count} answers to label by hand into {hand}; fill in `verdict` and run evaluate again")
        hand = None
    labels = parse_labels(s.get("classifier_labels")) if s.get("classifier_labels") else None
    names = list(s.get("scorer", ()))
    taught = not generations.is_empty() and set(generations["model"]) <= set(TAUGHT)
    classifier = s.get("classifier", NAME if taught else None)
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
    import polars as pl

    path = s.run / "scores.parquet"
    if not path.exists() or not s.get("judge_model"):
        return False
    return not pl.read_parquet(path).filter((pl.col("scorer") == "judge") & pl.col("verdict").is_null()).is_empty()


def clusters(s: Settings, record: dict[str, Any], generations: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """`dataset`, `id`, `theme`: which prompts are siblings, and the data sets that could not be asked.

    Read again only if the last evaluation of these answers did not find out.
    """
    import polars as pl

    from data.store.rundir import records

    rows = generations.select("dataset", "id", "prompt").unique(["dataset", "id"], keep="first", maintain_order=True)
    path, before = s.run / "scores.parquet", records(s.run).get("scores", {}).get("key", {})
    if before.get("generations") == record["id"] and before.get("without themes") == [] and path.exists():
        known = pl.read_parquet(path, columns=["dataset", "id", "theme"]).unique(["dataset", "id"], keep="first")
        if known.height == rows.height:  # a hand scores a sample
            return known, []
    return asked_themes(s, rows)
