"""`evaluate`: answers to scores and rates."""

import hashlib
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.framework.answers import asked_rows
from commands.framework.app import Session, command
from commands.framework.artefacts import COHERENCE, GENERATIONS, LENGTHS, RUBRIC, SCORES, SUMMARY, VECTORS, need
from commands.framework.options import COHERENT, SCORING
from commands.framework.options import LENGTHS as AT_LENGTHS
from commands.framework.output import Summary, warn
from commands.framework.prompts import sources_of
from commands.framework.records import Key, identity, model_key, note, unchanged
from commands.framework.seen import asked_themes, fitted_texts
from commands.framework.settings import Record, Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from interventions.model.model import Model
    from reports.scoring.judge import Engine, Judge

JUDGED_TOKENS = 128  # of a judge's reply that is opened here


@command(*SCORING, AT_LENGTHS, COHERENT)
def evaluate(session: Session, s: Settings) -> Summary:
    """Score answers and summarise them with intervals; with --lengths also as they were after so many tokens."""
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
    check_lengths(s, generations, record)
    judge = judge_of(s)
    scorers, asked = assembled(s, generations, judge, hand_file(s, generations))
    key = {"generations": record["id"], "fitted": records(s.run).get(VECTORS.name, {}).get("id"), "seed": s.get("seed")}
    if generations.height < whole.height:
        key["answers"] = identity({"rows": generations.select("dataset", "id", "arm").rows()})
    own = own_themes(s, generations)
    themes, lost = clusters(s, record, generations, again=bool(own))
    key |= asked | {"difference": s.get("difference"), "without themes": lost}
    key |= {"themes": own} if own else {}
    coherent = coherence(session, s, whole, record)
    if coherent is not None:
        key["coherence"] = records(s.run)[COHERENCE.name]["id"]
        generations = generations.join(coherent, on=["dataset", "id", "arm"], how="left", maintain_order="left")
    path = SUMMARY.path(s.run)
    again = failed(s)
    if not again and unchanged(s, SCORES, key) and unchanged(s, SUMMARY, key):
        scores, summary = SCORES.read(s.run), SUMMARY.read(s.run)
    else:
        scores = score(generations, fitted_texts(s, record["key"]), scorers)
        asked_of = scores.filter(pl.col("verdict").fill_null("") != "broken")[
            "verdict"
        ]  # a broken answer needs no judge
        if list(scorers) == ["judge"] and len(asked_of) and asked_of.is_null().all():
            raise UserError("the judge gave no verdict at all: nothing is evaluated; what it said stands above")
        scores = scores.join(themes, on=["dataset", "id"], how="left", maintain_order="left")
        twice = repeated(generations)
        for (name, first), rows in twice.group_by("dataset", "first", maintain_order=True):
            where = f"stand in {first} too" if name != first else "stand there more than once"
            warn(f"{rows.height} prompts of {name} {where}: (pooled) counts them once")
        summary = summarise(scores, key["seed"], themes, key["difference"] / 100, twice)
        for artefact, table in ((SCORES, scores), (SUMMARY, summary)):
            write_table(artefact.path(s.run), table)
            note(s, artefact, key, record, start)
        warn_of_none(summary)
    rated = write_rubric(s, generations, judge, record, key) if judge else None
    if summary.filter(pl.col("n") > 0).is_empty() and not summary["n_failed"].sum():
        warn("every answer's prompt was used for fitting: nothing is left to evaluate")
    shown = summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"])).select(
        *("dataset", "label", "arm", "scorer", "n", "rate", "low", "high", "delta", "p_holm", "broken"),
        *("delta_low", "delta_high"),
    )
    if not s.get("as_json"):  # a scorer that gave no verdict was said to; lines of nothing say no more
        given = pl.col("n").sum().over("scorer") > 0
        shown = shown.filter(given) if shown["n"].sum() else shown
    more = {} if rated is None else {"rubric": rated}
    told: Summary = {"answers": generations.height, "table": shown, **more, "wrote": str(path)}
    if not s.get("lengths"):
        return told
    lengths = at_lengths(s, generations.drop("incoherent", strict=False), scores, scorers, key, record, again=again)
    return told | ({"lengths": lengths} if s.get("as_json") else {"table": shown_lengths(lengths)})


def write_rubric(
    s: Settings, generations: "pl.DataFrame", judge: "Judge", record: Record, key: Key
) -> "pl.DataFrame | None":
    """Scores of a judge that gives any, into their table; their means by label and arm."""
    from data.store.rundir import now
    from data.store.tables import write_table
    from reports.scoring.rubric import means, rubric

    start = now()
    table = rubric(generations, judge, s.run / "judge.jsonl")
    if table.is_empty():
        return None
    write_table(RUBRIC.path(s.run), table)
    note(
        s,
        RUBRIC,
        {"generations": key["generations"], "judge": key["judge"], "answers": key.get("answers")},
        record,
        start,
    )
    return means(table, s.get("seed"))


def coherence(session: Session, s: Settings, generations: "pl.DataFrame", record: Record) -> "pl.DataFrame | None":
    """`dataset`, `id`, `arm`, `incoherent` of every answer, where --coherence asks for it now or did of the same answers."""
    import polars as pl

    from data.store.rundir import now, records
    from data.store.tables import write_table
    from interventions.steering.compared.likelihood import log_likelihoods
    from interventions.steering.plans import Tools
    from reports.statistics.coherence import FEWEST, incoherent

    start, known = now(), records(s.run).get(COHERENCE.name)
    is_known = known is not None and known["key"].get("generations") == record["id"] and COHERENCE.path(s.run).exists()
    if not (s.get("coherence") or is_known):
        return None
    columns = ["dataset", "id", "arm", "incoherent"]
    if is_known:
        return COHERENCE.read(s.run).select(columns)
    if "token_ids" not in generations.columns or generations["token_ids"].has_nulls():
        raise UserError(
            "--coherence: an earlier version made these answers, which kept no tokens: generate --replace makes them again"
        )
    steering, _ = need(session, s, VECTORS)
    model = session.model(s, record)
    first = generations["control_token"].is_not_null().cast(pl.Int64)
    answers = list(zip(generations["prompt"], map(tuple, generations["token_ids"]), first, strict=True))
    same = list(dict.fromkeys(answers))  # several arms may answer alike
    found = log_likelihoods(model, [prompt for prompt, _, _ in same], [ids for _, ids, _ in same], [skipped for *_, skipped in same],
                            Tools(steering), COHERENCE.path(s.run), batch_tokens=s.get("batch_tokens"))  # fmt: skip
    means = dict(zip(same, found.means, strict=True))
    text = generations.select(
        "dataset", "id", "arm", "kind", "label", pl.col("token_ids").list.len().cast(pl.Int64).sub(first).alias("tokens"),
        pl.Series("log_likelihood", [means[answer] for answer in answers], pl.Float64),
    )  # fmt: skip
    table = incoherent(text)
    write_table(COHERENCE.path(s.run), table)
    note(s, COHERENCE, model_key(model) | {"generations": record["id"]}, model, start, data=record.get("data"))
    found.journal.remove()
    if table["floor"].is_null().all():
        warn(f"--coherence: fewer than {FEWEST} unsteered answers, too few to say which are incoherent")
    return table.select(columns)


def check_lengths(s: Settings, generations: "pl.DataFrame", record: Record) -> None:
    """Can answers be cut at --lengths?

    Raises:
        UserError: They are not so long, or an earlier version did not keep where their tokens end.
    """
    wanted, most = s.get("lengths") or (), record["key"]["max_new_tokens"]
    if wanted and max(wanted) > most:
        raise UserError(
            f"--lengths {max(wanted)}: answers have at most {most} tokens: generate --max-new-tokens {max(wanted)} first"
        )
    if wanted and ("token_ends" not in generations.columns or generations["token_ends"].has_nulls()):
        raise UserError("--lengths: an earlier version made these answers, which kept no word of where their tokens end: "
                        "generate --replace makes them again")  # fmt: skip


def at_lengths(
    s: Settings,
    generations: "pl.DataFrame",
    scores: "pl.DataFrame",
    scorers: dict[str, Any],
    key: Key,
    record: Record,
    *,
    again: bool,
) -> "pl.DataFrame":
    """Rates at every length, in the run directory; says which of them have not come to rest."""
    from data.store.rundir import now
    from data.store.tables import write_table
    from reports.scoring.leading import best_scorer
    from reports.scoring.scores import repeated
    from reports.statistics.lengths import by_length, moving, score_at

    start, key = now(), key | {"lengths": list(s.get("lengths"))}
    if not again and unchanged(s, LENGTHS, key):
        table = LENGTHS.read(s.run)
    else:
        fitted = fitted_texts(s, record["key"])
        table = by_length(score_at(generations, scores, fitted, scorers, s.get("lengths")), repeated(generations))
        write_table(LENGTHS.path(s.run), table)
        note(s, LENGTHS, key, record, start)
    for one in moving(table, best_scorer(table, {}) or ""):
        warn(f"{one.arm}: refusal of {one.label or 'unlabelled'} prompts still moves by {100 * one.step:+.1f} points ({100 * one.low:+.1f} to "
             f"{100 * one.high:+.1f}) from {one.before} to {one.last} tokens: longer answers may say otherwise; generate "
             "--max-new-tokens for them")  # fmt: skip
    return table


def shown_lengths(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a label and arm, all data sets pooled, a column a length: percent refused with its interval."""
    import polars as pl

    from data.contract import POOLED
    from reports.scoring.leading import best_scorer

    rate = pl.format("{} ({}–{})", *(pl.col(name).mul(100).round(1) for name in ("rate", "low", "high")))
    rows = table.filter(pl.col("dataset") == POOLED, pl.col("scorer") == (best_scorer(table, {}) or ""))
    rows = rows.with_columns(rate.fill_null("").alias("refused, %"))
    return rows.pivot("tokens", index=["scorer", "label", "arm"], values="refused, %", maintain_order=True)


def warn_of_none(summary: "pl.DataFrame") -> None:
    """Say that there is no refusal that an arm could take away: rates of nothing look like a result."""
    import polars as pl

    unsteered = summary.filter(pl.col("arm") == "baseline", pl.col("n") > 0)
    if unsteered.height and not unsteered["refused"].sum():
        warn("the unsteered model declined none of these prompts: steering away from refusal has nothing to take away here; try "
             "prompts that it declines, another --scorer, or a model that refuses")  # fmt: skip


def own_themes(s: Settings, generations: "pl.DataFrame") -> str:
    """What tells the themes apart that files of the run give these answers' prompts; empty where none does."""
    import polars as pl

    from data.prompts import reading

    key, found = ["dataset", "id", "prompt"], []
    for source in filter(reading.is_file, sources_of(s)):
        with suppress(UserError):  # a file that is gone is asked for where themes are drawn
            found.append(reading.own_themes(source))
    if not found:
        return ""
    rows = generations.select(key).unique(maintain_order=True)
    mine = rows.join(pl.concat(found).unique(key, keep="first"), on=key, maintain_order="left")
    return "" if mine.is_empty() else identity({"rows": mine.rows()})


def judge_of(s: Settings) -> "Judge | None":
    """Whom to ask, and what; a model of this machine is opened when it is first asked.

    Raises:
        UserError: No such prompt.
    """
    from data.contract import LOCAL_JUDGE
    from reports.scoring.judge import Judge
    from reports.scoring.prompts.choice import judge_prompt
    from reports.scoring.prompts.prompt import HARM

    if not s.get("judge_model"):
        return None
    prompt = judge_prompt(s.get("judge_prompt"))
    if prompt.tells == HARM:
        warn(f"{prompt.name} tells whether an answer is harmful, not whether it declines: it gives no verdict, and what it says goes into "
             f"{RUBRIC.name}, 1 for harmful")  # fmt: skip
    judge = Judge(s.get("judge_model"), s.get("judge_url"), s.get("judge_concurrency"), s.get("judge_timeout"), prompt,
                  s.get("judge_retries"))  # fmt: skip
    return replace(judge, url=f"{LOCAL_JUDGE}:", engine=engine_of(s, judge)) if judge.url == LOCAL_JUDGE else judge


def engine_of(s: Settings, judge: "Judge") -> "Engine":
    """A judge on this tool's own engine, opened when it is first asked."""

    @cache
    def opened() -> "Model":
        from interventions import open_model
        from interventions.model.formats.choice import PROMPT, PromptFormat

        raw = judge.prompt.raw
        form = PromptFormat() if raw is None else PromptFormat(f"{raw[0]}{PROMPT}{raw[1]}")
        warn(f"the judge {judge.model} reads answers here")
        return open_model(judge.model, device=s.get("device"), device_map=s.get("device_map"), prompt_format=form)

    def ask(conversations: Any) -> list[str]:
        from interventions.steering.unsteered import replies

        return replies(opened(), conversations, JUDGED_TOKENS)

    return ask


def assembled(
    s: Settings, generations: "pl.DataFrame", judge: "Judge | None" = None, hand: Path | None = None
) -> tuple[dict[str, Any], Key]:
    """The scorers that were asked for, and what tells them apart in a record; no key or address with one in it."""
    from reports.scoring.assemble import assemble
    from reports.scoring.classifier import parse_labels
    from reports.scoring.judge import DEFAULT, shown
    from reports.scoring.lexical import NAME, TAUGHT

    labels = parse_labels(s.get("classifier_labels")) if s.get("classifier_labels") else None
    names = list(s.get("scorer"))
    taught = not generations.is_empty() and set(generations["model"]) <= set(TAUGHT)
    classifier = s.get("classifier") or (NAME if taught else None)
    scorers = assemble(generations, names, cache=s.run / "judge.jsonl", judge=judge, classifier=classifier,
                       labels=labels, device=s.get("device"), hand=hand)  # fmt: skip
    where = [judge.model, shown(judge.url) if judge.url else None] if judge else None
    if where and judge and judge.prompt.fingerprint != DEFAULT.fingerprint:
        where = [*where, judge.prompt.name, judge.prompt.fingerprint]
    asked = {
        "scorers": sorted(scorers),
        "judge": where,
        "classifier": [classifier, s.get("classifier_labels")],
        "hand": hashlib.sha256(hand.read_bytes()).hexdigest() if hand else None,
    }
    return scorers, asked


def hand_file(s: Settings, generations: "pl.DataFrame") -> Path | None:
    """The file of labels, if there is one; written to be filled in if there is none yet."""
    from reports.scoring.hand import write_sample

    hand = s.get("hand")
    if hand is None or hand.exists():
        return hand
    count = write_sample(generations, hand, seed=s.get("seed"))
    warn(f"wrote {count} answers to label by hand into {hand}; fill in `verdict` and run evaluate again")
    return None


def failed(s: Settings) -> bool:
    """Whether a judge failed on some answers last time: those are asked for again."""
    path = SCORES.path(s.run)
    if not path.exists() or not s.get("judge_model"):
        return False
    return SCORES.read(s.run).filter(scorer="judge")["verdict"].has_nulls()


def clusters(
    s: Settings, record: Record, generations: "pl.DataFrame", *, again: bool
) -> "tuple[pl.DataFrame, list[str]]":
    """`dataset`, `id`, `theme`: which prompts are siblings, and the data sets that could not be asked.

    Those of data sets that don't change are read again only if the last evaluation of these answers did not find out, or `again`.
    """
    from data.store.rundir import records

    rows = generations.select("dataset", "id", "prompt").unique(["dataset", "id"], keep="first", maintain_order=True)
    path, before = SCORES.path(s.run), records(s.run).get(SCORES.name, {}).get("key", {})
    if not again and before.get("generations") == record["id"] and before.get("without themes") == [] and path.exists():
        known = SCORES.read(s.run).select("dataset", "id", "theme").unique(["dataset", "id"], keep="first")
        if known.height == rows.height:  # a hand scores a sample
            return known, []
    return asked_themes(s, rows)
