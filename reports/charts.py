"""Altair charts of a run's tables. Colours are Okabe and Ito's, readable for the colour-blind."""

from typing import Any

import altair as alt
import polars as pl

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def cosine_matrix(table: pl.DataFrame, layer: int) -> Any:
    """Cosines between the categories' vectors at one layer; columns `a`, `b`, `cosine`."""
    base = alt.Chart(table).encode(
        x=alt.X("a:N", title=None, sort=None, axis=alt.Axis(labelAngle=-30, labelLimit=220)),
        y=alt.Y("b:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
    )
    squares = base.mark_rect().encode(
        color=alt.Color("cosine:Q", scale=alt.Scale(scheme="blueorange", domain=[-1, 1], reverse=True), title="cosine")
    )
    numbers = base.mark_text().encode(
        text=alt.Text("cosine:Q", format=".2f"),
        color=alt.condition("abs(datum.cosine) > 0.7", alt.value("white"), alt.value("black")),
    )
    return alt.layer(squares, numbers).properties(
        width=320, height=320, title=f"Cosine of steering vectors, layer {layer}"
    )


def projection_by_layer(table: pl.DataFrame) -> Any:
    """Mean projection onto each category's unit vector by layer; columns `group`, `category`, `layer`, `value`, `n`."""
    lines = (
        alt.Chart(table)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer"),
            y=alt.Y("value:Q", title="mean projection"),
            color=alt.Color(
                "group:N", title="prompts", scale=alt.Scale(range=COLOURS), legend=alt.Legend(labelLimit=260)
            ),
            tooltip=["group:N", "category:N", "layer:Q", alt.Tooltip("value:Q", format=".2f"), "n:Q"],
        )
        .properties(width=240, height=160)
    )
    return lines.facet(facet=alt.Facet("category:N", title="projected onto the vector of"), columns=3).resolve_scale(
        y="independent"
    )


def refusal_rates(table: pl.DataFrame) -> Any:
    """Refusal and broken rates with 95 % intervals; rows of summary.parquet with a column `share_broken`."""
    base = alt.Chart(table).encode(y=alt.Y("arm:N", title=None, axis=alt.Axis(labelLimit=240)))
    tips = ["dataset:N", "label:N", "arm:N", "n:Q", alt.Tooltip("rate:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%"), alt.Tooltip("high:Q", format=".1%")]  # fmt: skip
    x = alt.X("rate:Q", title="refused (● with Wilson 95 % interval), broken (✕)", axis=alt.Axis(format="%"),
              scale=alt.Scale(domain=[0, 1]))  # fmt: skip
    colour = alt.Color("arm:N", scale=alt.Scale(range=COLOURS), legend=None)
    points = base.mark_point(filled=True, size=80).encode(x=x, color=colour, tooltip=tips)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=""), x2="high:Q", color=colour)
    broken = base.mark_point(shape="cross", filled=True, size=60, angle=45, color="#555").encode(x="share_broken:Q")
    chart = alt.layer(bars, points, broken).properties(width=420, height=alt.Step(32))
    return chart.facet(row=alt.Row("panel:N", title=None, header=alt.Header(labelAngle=0, labelAlign="left")))
