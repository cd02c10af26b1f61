"""What `trace` saw: projections by layer, and prompts unsteered and steered side by side."""

import polars as pl

from data.store.tables import Values
from reports.page import charts
from reports.page import wording as say
from reports.page.blocks import Block, Chart, Code, Prose, Row, Section, Table
from reports.page.names import named
from reports.page.run import Run

MOST_ROWS = 60
MOST_PANELS = 9
MOST_CHARACTERS = 2000


def section(run: Run) -> Section | None:
    """Projections, then the table."""
    traces = run.table("traces")
    if traces is None:
        return None
    return Section("traces", "Traced prompts", [*projections(traces), *side_by_side(traces)])


def projections(traces: pl.DataFrame) -> list[Block]:
    """One panel a category's vector: its own prompts, other prompts to decline, benign ones; each prompt once in however many arms."""
    traces = traces.unique(["dataset", "id"], keep="first", maintain_order=True)
    own = "prompt_category" if "prompt_category" in traces.columns else None
    label = "label" if "label" in traces.columns else None
    rows = (
        traces.select(
            (pl.col(own) if own else pl.lit(None, pl.String)).alias("own"),
            (pl.col(label) if label else pl.lit(None, pl.String)).alias("label"),
            "projections",
        )
        .explode("projections", empty_as_null=False)
        .unnest("projections")
        .drop_nulls("value")
    )
    if rows.is_empty():
        return []
    series = (
        pl.when(pl.col("label") == "benign").then(pl.lit("benign"))
        .when(pl.col("own") == pl.col("category")).then(pl.lit("this category"))
        .otherwise(pl.lit("all others"))
    )  # fmt: skip
    means = (
        rows.with_columns(series.alias("series"))
        .group_by("category", "series", "layer", maintain_order=True)
        .agg(pl.col("value").mean(), pl.len().cast(pl.Int64).alias("n"))
    )
    panels = []
    for at, name in enumerate(means["category"].unique(maintain_order=True).to_list()[:MOST_PANELS]):
        panel = means.filter(pl.col("category").eq_missing(name)).select("series", "layer", "value", "n")
        names = [s for s in ("this category", "all others", "benign") if s in panel["series"]]
        sizes = ", ".join(f"{s} n = {panel.filter(pl.col('series') == s)['n'].max()}" for s in names)
        chart = charts.lines(panel, names, y="mean projection")
        panels.append(Chart(f"projection-{at}", chart, sizes, f"Onto {say.name(name, 40)}"))
    caption = (
        "Mean projection of the unsteered residual stream at the last prompt token onto each category's unit "
        f"vector, {say.counted(traces.height, 'traced prompt')}."
    )
    return [Row(panels, caption)]


def side_by_side(traces: pl.DataFrame) -> list[Block]:
    """The first prompts: next token and text, without and with steering."""
    first = traces.row(0, named=True)
    rows = traces.head(MOST_ROWS)
    arms = named(traces["arm"].drop_nulls()) if "arm" in traces.columns else {}
    several = {"arm": [arms[arm].short if arm in arms else "–" for arm in rows["arm"]]} if len(arms) > 1 else {}
    shown = pl.DataFrame(
        {
            "prompt": rows["prompt"],
            **several,
            "KL (nats)": say.column(rows, say.fixed, "kl"),
            "next token": say.column(rows, _tokens, "top_unsteered"),
            "next token, steered": say.column(rows, _tokens, "top_steered"),
        }
    )
    texts = ["prompt"]
    if rows["text_unsteered"].drop_nulls().len():
        shown = shown.with_columns(rows["text_unsteered"].alias("text"), rows["text_steered"].alias("text, steered"))
        texts += ["text", "text, steered"]
    frame = traces.select([name for name in traces.columns if not traces.schema[name].is_nested()])
    rest = f" The first {MOST_ROWS} of {traces.height:,}." if traces.height > MOST_ROWS else ""
    told = f"In {len(arms)} arms." if several else how(first)
    return [
        *as_read(first),
        Prose(told + rest),
        Table("traces", frame, shown, "Unsteered and steered, side by side", texts),
    ]


def as_read(row: Values) -> list[Block]:
    """The first prompt as the model reads it: what a prompt format puts around all of them."""
    text = row.get("rendered")
    return [Prose("The first prompt, as the model reads it:", "note"), Code(text[:MOST_CHARACTERS])] if text else []


def how(row: Values) -> str:
    """What was done to the prompts, in a sentence; arms that edit no layer have none in their rows."""
    if row["layer"] is not None:
        return (
            f"Steered with {whose(row['category'])} at layer {say.number(row['layer'])}, strength "
            f"{say.number(row['strength'])} (in {say.units(row['strength_unit'])}), scope {say.name(row['scope'])}."
        )
    if row["strength"] is not None:
        return f"Steered by a bias of {say.number(row['strength'])} on the control tokens' first logits."
    return "Steered by an instruction before the prompt, and no vector."


def whose(category: str | None) -> str:
    """Whose vector was added."""
    return "the mean of all categories' vectors" if category == "mean" else f"the vector of {say.name(category)}"


def _tokens(tops: list[dict[str, object]] | None) -> str:
    best = [top for at, top in enumerate((tops or [])[:3]) if top and (at == 0 or not _rare(top.get("probability")))]
    return ", ".join(f"{say.token(str(top.get('token')))}\u00a0{_percent(top.get('probability'))}" for top in best)


def _rare(value: object) -> bool:
    """A probability that would be written as 0 %."""
    return isinstance(value, float) and value < 0.005


def _percent(value: object) -> str:
    return say.percent(value, 0) if isinstance(value, float) else "–"
