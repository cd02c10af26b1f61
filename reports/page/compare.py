"""Two or more run directories side by side: settings that differ, trade-offs, paired differences, answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data.errors import UserError
from data.store.tables import Values
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Samples, Section, Table
from reports.page.names import Arm, alone, kind_of
from reports.page.run import Run, open_run
from reports.page.sections.answer import Pooled, point, pooled_rows
from reports.page.sections.samples import pack
from reports.page.write import Tables, write_files, write_page
from reports.scoring.leading import trust
from reports.statistics.summary import holm, mcnemar, newcombe

MOST_TOLD = 3
SETTINGS = ("model", "revision", "dtype", "template", "data", "backend", "seed")


def write_comparison(
    folders: Sequence[Path], path: Path, *, assets: Path | None = None, tables: Tables | None = None
) -> list[str]:
    """Write one self-contained HTML page that compares runs; returns its section titles.

    Raises:
        UserError: Fewer than two runs, one given twice, or nothing in them that can be compared.
    """
    if len(folders) < 2:
        raise UserError("--compare takes two run directories or more: --compare runs/a runs/b")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("--compare names one run directory twice")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such run directory")
    runs = dict(zip(run_names(folders), map(open_run, folders), strict=True))
    makers = (trade_off, paired, vectors, answers, settings)
    sections = [section for make in makers if (section := make(runs)) is not None]
    if not any(section.name != "settings" for section in sections):
        raise UserError("nothing to compare: run `python cli.py evaluate` in each of the run directories")
    top = [Prose(f"{name}: {say.name(run.first('model') or 'no model recorded')}, {run.folder}", "meta")
           for name, run in runs.items()]  # fmt: skip
    top += [Prose(say.WORDS, "note")]
    top += [Prose(f"{name}: left out, as it could not be read: {fault}", "warning")
            for name, run in runs.items() for fault in run.faults]  # fmt: skip
    write_page(path, f"Refusal compared: {say.listed(runs)}", top, sections)
    write_files(sections, assets, tables)
    return [section.title for section in sections]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; with their parents', where two are called the same."""
    names = [say.name(folder.resolve().name, 30) for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [f"{at}: {name}" for at, name in enumerate(names, 1)]


def trade_off(runs: dict[str, Run]) -> Section | None:
    """All arms of all runs in one chart, a colour a run."""
    rows = []
    scorers = set()
    for name, run in runs.items():
        pooled = pooled_rows(run)
        if pooled is None:
            continue
        scorers.add(pooled.scorer)
        named = run.named()
        both = [arm for arm in run.arms() if all(pooled.row(label, arm) for label in say.LABELS)]
        rows += [_point(name, pooled, arm, named[arm]) for arm in both]
    if not rows:
        return None
    table = pl.DataFrame(rows)
    caption = (
        f"Over-refusal against refusal, all data sets pooled, scored by {say.listed(sorted(scorers))}: benign "
        f"prompts n = {say.count_range(table['n_x'])}, harmful n = {say.count_range(table['n_y'])}. Up and to the "
        "left is better; bars are Wilson's 95 % intervals. Runs on different prompts are not comparable point by "
        "point: see the paired differences."
    )
    told = differences(runs)
    blocks: list[Block] = [Prose(answer(told), "lead")] if told else []
    blocks.append(Chart("compare-trade-off", charts.trade_off(table, list(runs)), caption))
    if len(scorers) > 1:
        told_apart = "The runs are scored by different scorers: part of any difference is theirs."
        blocks.insert(0, Prose(told_apart, "warning"))
    return Section("trade-off", "Trade-off", blocks)


def _point(name: str, pooled: Pooled, arm: str, shown: Arm) -> Values:
    return {"arm": f"{name}: {shown.short}", "group": name, "order": 0.0, "mark": shown.short,
            **point(pooled.rows["benign", arm], pooled.rows["harmful", arm], joined=False)}  # fmt: skip


def differences(runs: dict[str, Run]) -> list[Values]:
    """Each run against the first, arm by arm and scorer by scorer, on the prompts that both answered."""
    names = list(runs)
    if runs[names[0]].table("scores") is None:
        return []
    rows = [row for name in names[1:] for row in _differences(names[0], runs[names[0]], name, runs[name])]
    for scorer in {row["scorer"] for row in rows}:
        family = [row for row in rows if row["scorer"] == scorer]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
    return sorted(rows, key=lambda row: trust(row["scorer"]))


def answer(rows: list[Values]) -> str:
    """Which differences are shown, by the best scorer, in one sentence."""
    first = [row for row in rows if row["scorer"] == rows[0]["scorer"]]
    shown = [row for row in first if say.is_shown(row["delta_low"], row["delta_high"], row["p_holm"])]
    of = f"Of {say.counted(len(first), 'paired comparison')} with {rows[0]['against']}, scored by {rows[0]['scorer']},"
    if not shown:
        return f"{of} none shows a difference."
    told = [
        f"{row['run']}, {alone(row['arm'])}: {say.points(row['delta'])} points of {row['n']:,} "
        f"{say.PROMPTS.get(row['label'], row['label'])} refused "
        f"(95\u00a0% interval {say.points_span(row['delta_low'], row['delta_high'])})"
        for row in shown[:MOST_TOLD]
    ]
    rest = f"; and {len(shown) - MOST_TOLD} more" if len(shown) > MOST_TOLD else ""
    return f"{of} {len(shown)} {'shows' if len(shown) == 1 else 'show'} a difference: {'; '.join(told)}{rest}."


def paired(runs: dict[str, Run]) -> Section | None:
    """The differences in a table."""
    names = list(runs)
    if runs[names[0]].table("scores") is None:
        return None
    rows = differences(runs)
    if not rows:
        none = Prose("No arm of these runs has the same name and the same prompts.")
        return Section("paired", "Paired differences", [none])
    frame = pl.DataFrame(rows)
    shown = say.table_of(
        frame,
        ("group", _heading, "run", "against", "scorer", "label"),
        ("arm", alone, "arm"),
        ("n", say.number, "n"),
        ("refused", say.percent, "rate"),
        (f"refused in {names[0]}", say.percent, "rate_against"),
        ("Δ points", say.points, "delta"),
        ("95 % interval of Δ", say.points_span, "delta_low", "delta_high"),
        ("p (Holm)", say.p_value, "p_holm"),
        ("difference", say.verdict, "delta_low", "delta_high", "p_holm"),
    )
    note = (
        "Arms of the same name on prompts that both runs answered (by data set, id and text); Δ is a run minus "
        f"{names[0]}, with Newcombe's paired score interval; exact McNemar, Holm over all rows of a scorer."
    )
    table = Table("compare-paired", frame, shown, group="group")
    return Section("paired", "Paired differences", [table, Prose(note, "note")])


def _heading(run: str, against: str, scorer: str, label: str | None) -> str:
    return f"{run} against {against}, {say.PROMPTS.get(label, say.name(label))}, scored by {say.name(scorer)}"


def _differences(against: str, first: Run, name: str, other: Run) -> list[Values]:
    keys = ["dataset", "id", "arm", "scorer"]
    counted = [_counted(run, keys) for run in (first, other)]
    both = (
        counted[0]
        .select(*keys, "label", "prompt", pl.col("refused").alias("before"))
        .join(counted[1].select(*keys, pl.col("refused").alias("after"), pl.col("prompt").alias("other")), on=keys)
    )
    both = both.filter(pl.col("prompt").eq_missing(pl.col("other")))
    rows = []
    place = {arm: at for at, arm in enumerate(first.arms())}
    order = ("scorer", "label", pl.col("arm").replace_strict(place, default=len(place)))
    for (scorer, label, arm), part in both.sort(*order, maintain_order=True).group_by(
        "scorer", "label", "arm", maintain_order=True
    ):
        after, before = part["after"].to_numpy().astype(bool), part["before"].to_numpy().astype(bool)
        cells = [int(cell.sum()) for cell in (after & before, after & ~before, ~after & before, ~after & ~before)]
        delta, low, high = newcombe(*cells)
        rows.append({"run": name, "against": against, "arm": arm, "label": label, "scorer": scorer,
                     "n": part.height, "rate": float(after.mean()), "rate_against": float(before.mean()), "delta": delta, "delta_low": low, "delta_high": high,
                     "p": mcnemar(cells[1], cells[2]), "p_holm": None})  # fmt: skip
    return rows


def _counted(run: Run, keys: list[str]) -> pl.DataFrame:
    """Verdicts that count, with the text of their prompts."""
    scores, generations = run.table("scores"), run.table("generations")
    if scores is None or generations is None:
        return pl.DataFrame(schema={**dict.fromkeys((*keys, "label", "prompt"), pl.String), "refused": pl.Boolean})
    prompts = generations.select("dataset", "id", "prompt").unique(["dataset", "id"])
    used = scores.filter(~pl.col("fitted").fill_null(False) & pl.col("refused").is_not_null()).unique(
        keys, maintain_order=True
    )
    return used.join(prompts, on=["dataset", "id"]).select(*keys, "label", "prompt", "refused")


def vectors(runs: dict[str, Run]) -> Section | None:
    """Cosine of the same category's vector in the first run and each other, by layer."""
    names = list(runs)
    first = runs[names[0]].vectors
    if first is None:
        return None
    rows = []
    called = say.distinct(first.tensors, 40 if len(names) == 2 else 30)
    for name in names[1:]:
        other = runs[name].vectors
        if other is None or next(iter(other.tensors.values())).shape[1] != next(iter(first.tensors.values())).shape[1]:
            continue
        for category in [category for category in first.tensors if category in other.tensors]:
            for layer in sorted(set(first.layers) & set(other.layers)):
                a, b = (of.tensors[category][of.layers.index(layer)] for of in (first, other))
                length = float(np.linalg.norm(a) * np.linalg.norm(b))
                series = called[category] if len(names) == 2 else f"{name}: {called[category]}"
                if length:
                    n = min(first.counts[category], other.counts[category])
                    rows.append({"series": series, "layer": layer, "value": float(a @ b) / length, "n": n})
    if not rows:
        return None
    table = pl.DataFrame(rows)
    series = table["series"].unique(maintain_order=True).to_list()
    caption = (
        f"Cosine of each category's vector in {names[0]} and in {say.listed(names[1:])}; fitted on "
        f"{say.count_range(table['n'])} rows or more a category."
    )
    return Section(
        "vectors", "Vectors", [Chart("compare-vectors", charts.lines(table, series, y="cosine", height=260), caption)]
    )


def answers(runs: dict[str, Run]) -> Section | None:
    """Answers of all runs, each arm with its run's name; the first run's baseline stands at the left."""
    generations, scores, arms = [], [], []
    for at, (name, run) in enumerate(runs.items()):
        table, scored = run.table("generations"), run.table("scores")
        if table is None:
            continue
        names = {arm: "baseline" if at == 0 and kind_of(arm) == "baseline" else f"{name}: {arm}" for arm in run.arms()}
        arms += names.values()
        rename = pl.col("arm").replace_strict(names, default=pl.col("arm"))
        generations.append(table.with_columns(rename))
        scores += [scored.with_columns(rename)] if scored is not None else []
    if len(generations) < 2:
        return None
    together = pl.concat(generations, how="diagonal_relaxed")
    verdicts = pl.concat(scores, how="diagonal_relaxed") if scores else None
    packed = pack(together, verdicts, arms, next((arm for arm in arms if arm != "baseline"), None))
    note = f"“baseline” is that of {next(iter(runs))}. Answers are matched by data set and id."
    return Section("samples", "Answers", [Prose(note, "note"), Samples(packed)])


def settings(runs: dict[str, Run]) -> Section | None:
    """What was set differently, artefact by artefact."""
    artefacts = list(dict.fromkeys(name for run in runs.values() for name in run.records))
    rows = []
    for artefact in artefacts:
        entries = [run.records.get(artefact, {}) for run in runs.values()]
        options: list[Values] = [told if isinstance(told := entry.get("options"), dict) else {} for entry in entries]
        fields = [(field, [entry.get(field) for entry in entries]) for field in SETTINGS]
        keys = dict.fromkeys(key for option in options for key in option)
        fields += [(f"--{key.replace('_', '-')}", [option.get(key) for option in options]) for key in keys]
        rows += [
            {"artefact": artefact, "setting": field}
            | {name: _text(value) for name, value in zip(runs, values, strict=True)}
            for field, values in fields
            if any(value != values[0] for value in values)
        ]
    if not rows:
        return Section("settings", "Settings", [Prose("The records of these runs name the same settings.")])
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return Section("settings", "Settings that differ", [Table("compare-settings", frame)])


def _text(value: Any) -> str:
    return "–" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
