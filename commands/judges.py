"""`judges`: every scorer beside labels by hand."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands.evaluate import assembled, judge_of
from commands.framework.app import Session, command
from commands.framework.artefacts import GENERATIONS, JUDGES, need
from commands.framework.options import JUDGE_PROMPT, SCORING
from commands.framework.output import Summary, warn
from commands.framework.records import identity, note
from commands.framework.settings import Record, Settings
from data.contract import JUDGE_PROMPTS, TUNED_MODEL
from data.contract import LABELS_EMBEDDED as EMBEDDED
from data.contract import LABELS_WILDGUARD as WILDGUARD
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from reports.scoring.assemble import Verdicts

HAND = (f"Answers with labels by hand: a CSV or JSONL that evaluate --hand wrote for this run, filled in; {EMBEDDED}: 300 that ship; or "
        f"{WILDGUARD}: WildGuardTest's labels of refusal, from the hub or --data-mirror.")  # fmt: skip
WITH = tuple(option for option in SCORING if option.key not in ("hand", "judge_prompt", "difference"))
PROMPTS = replace(JUDGE_PROMPT, help=f"{JUDGE_PROMPT.help}  Repeatable: each is a scorer of its own.", multiple=True,
                  default=(next(iter(JUDGE_PROMPTS)),))  # fmt: skip


@command(
    *WITH,
    PROMPTS,
    next(option for option in SCORING if option.key == "hand").but(help=HAND, type=None, default=EMBEDDED),
)
def judges(session: Session, s: Settings) -> Summary:
    """Hold scorers against labels by hand: errors by class, agreement, and rates corrected for them.

    With --hand FILE of a run's own answers, the run's rates are corrected too. Of the 300 that ship one half may be tuned on, and the
    other is what counts. WildGuardTest's labels know no partial refusal and no broken answer: a scorer's count as compliance there.
    """
    import polars as pl

    from data.store.rundir import now
    from data.store.tables import write_table
    from reports.scoring.bench import HELD, TUNE, TWO_CLASSES
    from reports.statistics import judges as statistics

    start = now()
    hand = s.get("hand")
    answers, record = labelled_answers(session, s)
    scorers = named_scorers(s, answers)
    bench = pl.concat([answers.with_columns(pl.lit(name).alias("scorer"), verdicts(answers).cast(pl.String).alias("verdict"))
                       for name, verdicts in scorers.items()])  # fmt: skip
    if hand == WILDGUARD:
        bench = bench.with_columns(pl.col("verdict").replace(TWO_CLASSES))
    found = statistics.quality(bench)
    if found["n"].sum() == 0:
        raise UserError("no scorer gave a verdict on any of these answers: nothing is compared")
    tables = {
        "judges": found,
        "judges_classes": statistics.classes(bench),
        "judges_disagreements": statistics.disagreements(bench),
    }
    if hand == WILDGUARD:
        tables["judges_rates"] = statistics.corrected(bench.clear(), found)  # whose answers these are is not known
    elif hand != EMBEDDED:
        tables["judges_rates"] = statistics.corrected(counted(s, record, bench), found)
    else:
        judged = bench.filter(pl.col("half") == HELD, pl.col("verdict").is_not_null()).with_columns(
            arm=pl.lit("all arms")
        )
        tables["judges_rates"] = statistics.corrected(judged, found.filter(pl.col("half") == TUNE))
    for name, one in tables.items():
        write_table(s.run / f"{name}.parquet", one)
    key = {
        "answers": identity({"rows": answers.select("prompt", "arm", "response", "hand").rows()}),
        "scorers": [*scorers],
    }
    note(s, JUDGES, key, record, start)
    half = HELD if hand == EMBEDDED else "all"
    classes, rates = tables["judges_classes"], tables["judges_rates"]
    shown = found.filter(half=half).select(
        *("scorer", "n", "n_failed", "error", "low", "high", "kappa", "sensitivity", "specificity")
    )
    return {
        "answers": answers.height, "table": shown, f"calls, of {half} rows": classes.filter(half=half).drop("half"),
        **({"corrected rates": rates} if rates.height else {}),
        "disagreements": tables["judges_disagreements"].height, "wrote": str(s.run / "judges.parquet"),
    }  # fmt: skip


def labelled_answers(session: Session, s: Settings) -> "tuple[pl.DataFrame, Record]":
    """Answers with labels by hand, and the record of who gave them, or what `run.json` says where no run here did."""
    from reports.scoring.bench import labelled, shipped, wildguard

    hand = s.get("hand")
    if hand == EMBEDDED:
        return shipped(), {"id": EMBEDDED, "model": TUNED_MODEL}
    if hand == WILDGUARD:
        return wildguard(s.get("data_mirror")), {"id": WILDGUARD, "model": None, "data": [WILDGUARD]}
    labels = hand_path(s)
    table, record = need(session, s, GENERATIONS)
    return labelled(table, labels), record


def hand_path(s: Settings) -> Path:
    """The file of labels."""
    path = Path(s.get("hand"))
    if not path.exists():
        raise UserError(
            f"--hand {path}: no such file; `evaluate --hand {path}` writes one to fill in, {EMBEDDED} are 300 that ship, {WILDGUARD} WildGuardTest's"
        )
    return path


def named_scorers(s: Settings, answers: "pl.DataFrame") -> "dict[str, Verdicts]":
    """What is compared, by name: those of --scorer, or all that have what they need; a judge for each of its prompts."""
    found: dict[str, Verdicts] = {}
    prompts = s.get("judge_prompt")
    for at, prompt in enumerate(prompts if s.get("judge_model") else prompts[:1]):
        judge = judge_of(s.with_values(judge_prompt=prompt))
        scorers, _ = assembled(
            s.with_values(scorer=() if at == 0 else ("judge",)) if not s.get("scorer") else s, answers, judge
        )
        called = "judge" if len(prompts) == 1 else f"judge {prompt}"
        found |= {called if name == "judge" else name: verdicts for name, verdicts in scorers.items()}
    if not found:
        raise UserError("no scorer has what it needs: pass --scorer, --judge-model or --classifier")
    return found


def counted(s: Settings, record: Record, bench: "pl.DataFrame") -> "pl.DataFrame":
    """The run's verdicts that count, of scorers that are compared; none where it was not evaluated since."""
    import polars as pl

    from commands.framework.artefacts import SCORES
    from data.store.rundir import records

    nothing = bench.select("scorer", "label", "arm", "verdict", "hand").clear()
    scored = records(s.run).get(SCORES.name)
    if scored is None or scored["key"].get("generations") != record["id"]:
        warn("no rates are corrected: run evaluate with the same scorers first")
        return nothing
    mine = pl.col("scorer").is_in(bench["scorer"].unique().to_list())
    scores = SCORES.read(s.run).filter(~pl.col("fitted"), pl.col("verdict").is_not_null(), mine)
    if scores.is_empty():
        warn("no rates are corrected: evaluate counted no answer by these scorers")
    return scores.select("scorer", "label", "arm", "verdict", pl.lit(None, pl.String).alias("hand"))
