"""The papers' figures beside this run's, where the data set is theirs; after `reproduce` their whole table."""

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from data.contract import MACRO
from data.store.tables import Values
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Prose, Section, Table
from reports.page.names import Arm, kind_of
from reports.page.run import Run
from reports.scoring.leading import leading_scorer
from reports.statistics import paper, published
from reports.statistics.paper import Row, frame_of

MOST_ARMS = 6
# Kinds of arm that do what the papers' arms do.
ALIKE = {"base": ("baseline",), "categorical": ("gated", "routed"), "low-rank": ("lowrank",)}
THEIRS = "papers’ "
CAPTION = "percent refused; base, categorical and low-rank are the papers’, here is this run, with 95 % intervals; broken: in the order of the arms"


def section(run: Run) -> Section | None:
    """A row a data set that the papers have too, or None where there is none; after `reproduce` the whole table."""
    missing = left_out(run)
    if missing is not None:
        return whole_section(run, missing)
    summary = run.table("summary")
    scorer = None if summary is None else leading_scorer(summary)
    if summary is None or scorer is None:
        return None
    arms = shown_arms(run)
    rows = [row for row in paper.every(summary.filter(pl.col("n") > 0, scorer=scorer)) if row.ours]
    if not rows:
        return None
    blocks = [Prose(introduction(run, scorer)), Table("paper", frame_of(rows, list(arms)), shown_of(rows, arms))]
    return Section("paper", "Beside the papers", blocks)


def introduction(run: Run, scorer: str) -> str:
    """What is compared, and what differs."""
    arms = [arm for arm in run.arms() if kind_of(arm) != "random"]
    some = f" Shown: the first {MOST_ARMS} of {len(arms)} arms." if len(arms) > MOST_ARMS else ""
    model = run.first("model")
    warning = (
        f" The papers' model is {published.MODEL}; this is {say.name(model)}: the figures stand beside each other, "
        "no more."
    )
    return (
        f"Refused, in percent, as published for layer {published.LAYER} and strengths "
        f"{say.signed(f'{published.STRENGTH_BENIGN:g}')} and +{published.STRENGTH_HARMFUL:g} (categorical: one "
        f"vector a prompt; low-rank: one combination for all), and here, scored by {scorer}, with 95 % intervals "
        "(Wilson's; of a mean of sets, a bootstrap within the sets). Their judge, template and answers' length differ."
        f"{warning if model != published.MODEL else ''}{some}"
    )


def left_out(run: Run) -> dict[str, str] | None:
    """What `reproduce` could not run, each with how to get it; None if this is no such run."""
    missing = run.records.get("paper", {}).get("missing")
    return {str(source): str(how) for source, how in missing.items()} if isinstance(missing, dict) else None


def whole_section(run: Run, missing: Mapping[str, str]) -> Section | None:
    """Charts, the papers' whole table and ours, and what is missing."""
    _, rows, scorer = whole(run, missing)
    if scorer is None:
        return None
    blocks: list[Block] = [Prose(f"{introduction(run, scorer)} {settings(run)}")]
    for label, title in say.REFUSED.items():
        half, arms = [row for row in rows if row.label == label], shown_arms(run)
        if drawn := chart(half, arms):
            name, shown = f"paper-{label}-rates", narrow_of(half, arms)
            blocks += [drawn, Table(name, frame_of(half, list(arms)), shown, f"{title}: {CAPTION}")]
    lacking = [row for row in rows if row.missing]
    if lacking:
        frame = pl.DataFrame({"data set": [f"{row.title}, {row.label}" for row in lacking],
                              "how to get it": [row.missing for row in lacking]})  # fmt: skip
        blocks.append(Table("paper-missing", frame, None, "Sets that were not there", ("how to get it",)))
    return Section("paper", "Beside the papers", blocks)


def whole(run: Run, missing: Mapping[str, str]) -> tuple[Table, list[Row], str | None]:
    """The papers' whole table and ours, its rows, and who scored them; what is missing has empty cells.

    Args:
        run: A run of `reproduce`.
        missing: Sets that were to be run and were not there, as `--data` takes them -> how to get them.
    """
    seed = run.records.get("summary", {}).get("seed")
    seed = seed if isinstance(seed, int) and seed >= 0 else 0
    rows, scorer = paper.whole(run.table("summary"), run.table("scores"), missing, seed)
    arms = shown_arms(run)
    return Table("paper", frame_of(rows, list(arms)), narrow_of(rows, arms), CAPTION), rows, scorer


def shown_arms(run: Run) -> dict[str, Arm]:
    """Arms that have columns."""
    named = run.named()
    return {arm: named[arm] for arm in [arm for arm in run.arms() if kind_of(arm) != "random"][:MOST_ARMS]}


def shown_of(rows: list[Row], arms: Mapping[str, Arm]) -> pl.DataFrame:
    """What stands on the page: each of the papers' arms, and behind it those here that do the same."""
    columns: dict[str, list[str]] = {
        "data set": [row.title for row in rows],
        "prompts": [row.label for row in rows],
        "n there": ["–" if row.n is None else f"{row.n:,}" for row in rows],
        "n here": [_count(row) for row in rows],
    }
    return pl.DataFrame(columns | cells(rows, arms))


def narrow_of(rows: list[Row], arms: Mapping[str, Arm]) -> pl.DataFrame:
    """The same in less room; the papers' columns have their arms' bare names."""
    twice = {row.title for row in rows if len({other.label for other in rows if other.title == row.title}) > 1}
    counts = [" of ".join([_count(row), *([] if row.n is None else [f"{row.n:,}"])]) for row in rows]
    titles = [f"{row.title}, {row.label}" if row.title in twice else row.title for row in rows]
    rates = {heading.removeprefix(THEIRS): column for heading, column in cells(rows, arms).items()}
    return pl.DataFrame({"data set": titles, "n": counts} | rates)


def cells(rows: list[Row], arms: Mapping[str, Arm]) -> dict[str, list[str]]:
    """Columns of rates in percent, and of broken answers."""
    columns: dict[str, list[str]] = {}
    placed: list[str] = []
    for theirs, kinds in ALIKE.items():
        columns[f"{THEIRS}{theirs}"] = [_theirs(row.percents.get(theirs)) for row in rows]
        alike = [arm for arm in arms if kind_of(arm) in kinds]
        placed += alike
        columns |= {f"{arms[arm].short} here": [_ours(row.ours.get(arm)) for row in rows] for arm in alike}
    columns |= {
        f"{arms[arm].short} here": [_ours(row.ours.get(arm)) for row in rows] for arm in arms if arm not in placed
    }
    columns["broken here"] = [_broken(row, arms) for row in rows]
    return columns


def chart(rows: Sequence[Row], arms: Mapping[str, Arm]) -> Chart | None:
    """One label's rates, the papers' as hollow marks on the same lines."""
    pairs = [(theirs, arm) for theirs, kinds in ALIKE.items() for arm in arms if kind_of(arm) in kinds]
    points = []
    for row in rows:
        place = f"{row.title}\nn = {_count(row)}" if row.ours else row.title
        for theirs, arm in pairs:
            ours, percent = row.ours.get(arm, {}), row.percents.get(theirs)
            n = ours.get("n") or 0
            points.append({"place": place, "arm": arms[arm].short, "published": None if percent is None else percent / 100,
                           "broken": ours["broken"] / n if n and row.sums != MACRO else None,
                           **{key: ours.get(key) for key in ("rate", "low", "high", "n")}})  # fmt: skip
    if not any(point["rate"] is not None for point in points):
        return None
    label = rows[0].label
    kinds = dict.fromkeys(("rate", "low", "high", "published", "broken"), pl.Float64)
    data = pl.DataFrame(points, schema={"place": pl.String, "arm": pl.String, "n": pl.Int64, **kinds})
    names = [arms[arm].short for _, arm in pairs]
    listed = say.listed(f"{arms[arm].short} as {theirs}" for theirs, arm in pairs if theirs != arms[arm].short)
    caption = (
        f"{label.capitalize()} prompts refused. Filled: here, with 95 % intervals; hollow: the papers, on the line "
        f"of the arm that does the same ({listed}). ✕: broken answers here."
    )
    drawn = charts.beside(data, names, list(dict.fromkeys(data["place"])))
    return Chart(f"paper-{label}", drawn, caption, f"{say.REFUSED[label]} beside the papers'")


def settings(run: Run) -> str:
    """Where and how strongly this run's arms steer, and what the vectors were fitted on."""
    told: list[str] = []
    layer, generations = run.steered_layer(), run.table("generations")
    if layer is not None:
        told.append(f"layer {layer}")
    if generations is not None:
        named = run.named()
        steered = generations.drop_nulls(["layer", "strength"])
        for (arm, unit), part in steered.group_by("arm", "strength_unit", maintain_order=True):
            strengths = part["strength"].unique().sort().to_list()
            spread = " to ".join(say.number(strength) for strength in dict.fromkeys((strengths[0], strengths[-1])))
            share = residual_share(run, layer, max(map(abs, strengths))) if unit == "unit" else ""
            told.append(f"{named[arm].group} {spread} ({say.name(unit)}{share})")
    data = run.records.get("vectors", {}).get("data")
    if isinstance(data, list) and data:
        told.append(f"vectors fitted on {say.listed(data)}")
    return f"Here: {'; '.join(told)}.{too_little(run)}" if told else ""


def too_little(run: Run) -> str:
    """Why strengths are other ones than the papers', if they are."""
    found = run.records.get("paper", {}).get("too_little")
    if not isinstance(found, dict):
        return ""
    strength, norm = (found.get(name) for name in ("strength", "norm"))
    if not isinstance(strength, float) or not isinstance(norm, float) or norm <= 0:
        return ""
    return (
        f" At most {say.number(strength)} × the unit vector, as the file has it, would be {say.percent(strength / norm)} of the mean "
        f"residual norm here, {say.number(norm)}, and change little: strengths are shares of that norm instead."
    )


def residual_share(run: Run, layer: int | None, strength: float) -> str:
    """How long so many unit vectors are beside the residual stream: a strength means little without it."""
    vectors = run.vectors
    if vectors is None or layer not in vectors.layers:
        return ""
    norm = vectors.residual_norms[vectors.layers.index(layer)]
    return f": at most {say.percent(strength / norm)} of the mean residual norm, {say.number(norm)}" if norm else ""


def _count(row: Row) -> str:
    return say.count_range(pl.Series([ours["n"] for ours in row.ours.values()])) if row.ours else "–"


def _theirs(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.2f}"


def _ours(row: Values | None) -> str:
    numbers = [] if row is None else [row[key] for key in ("rate", "low", "high")]
    if not numbers or not all(isinstance(number, float) for number in numbers):
        return "–"
    rate, low, high = (f"{100 * number:.1f}" for number in numbers)
    return f"{rate}\u00a0({low}–{high})"


def _broken(row: Row, arms: Iterable[str]) -> str:
    """Shares of broken answers in percent, arm by arm; a mean of sets has none."""
    if row.sums == MACRO or not row.ours:
        return "–"
    counts = [(ours["broken"], ours["n"]) for arm in arms if (ours := row.ours.get(arm))]
    return "\u00a0/\u00a0".join(f"{100 * broken / n:.1f}" for broken, n in counts if n and broken is not None)
