"""Altair charts of a run's tables: pure functions, a table in, a chart out.

Every chart is a single view of width `container`, so that it fits a phone; text and lines take the page's own colour.
Series differ in colour and in shape or dash. The colours have a contrast of 3:1 on white and on the dark page.
"""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from reports.page import labels

COLOURS = ("#0072B2", "#D55E00", "#00875F", "#B8579B", "#8A6D00", "#7A63D1", "#A3483F", "#5B7A8C")
STAR = "M0,-1L.25,-.25L1,0L.25,.25L0,1L-.25,.25L-1,0L-.25,-.25Z"
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-left", "triangle-right", STAR)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3], [10, 4], [3, 1])
GREY = "#7D8590"
NEUTRAL = ("baseline", "benign")  # what others are held against: grey crosses
HOLLOW_FROM = 0.1  # a point with more broken answers than this is drawn hollow
TRADE_OFF = 340  # pixels high
# Widths of a plot, up to which labels lie as they do for the width that is named: a phone, a tablet, a page.
WIDTHS = {"phone": (480, 270), "tablet": (800, 560), "page": (math.inf, 1000)}

INK = "currentColor"
Spec = dict[str, Any]  # of Vega-Lite
PAGE: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFlush": False, "labelOverlap": True, "labelSeparation": 5,
        "labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK, "gridColor": INK,
        "gridOpacity": 0.12,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 200, "domainOpacity": 0.4,
        "tickOpacity": 0.4,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "orient": "bottom",
               "titleFontWeight": "normal", "labelLimit": 260, "columns": 3, "symbolSize": 70, "symbolOpacity": 1},
    "title": {"color": INK},
    "text": {"color": INK},
}  # fmt: skip


def on_paper(spec: Spec) -> Spec:
    """A chart's specification and the configuration for pictures: dark ink on white, as no page lends its colour."""

    def inked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inner if key == "datasets" else inked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [inked(inner) for inner in value]
        return "#1b1f24" if value == INK else value

    return inked(spec) | {"config": {**inked(PAGE), "background": "#ffffff", "font": "sans-serif"}}


def trade_off(table: pl.DataFrame, groups: Sequence[str]) -> Any:
    """Over-refusal against refusal, one line a group through its strengths, both intervals.

    Columns `arm`, `group`, `order`, and for x (benign) and y (harmful) `rate`, `low`, `high`, `n` with the suffixes
    `_x`, `_y`; `hollow` marks points with many broken answers, `line` whether a line passes through them, `mark` what
    stands beside them where there is room.
    """
    axis = {"format": "%", "tickCount": 5}
    highest, lowest = max(*table["high_x"], 0.05), min(*table["low_y"], 0.95)
    right, bottom = min(1, math.ceil(highest * 10) / 10), math.floor(lowest * 10) / 10
    data = _data(table.with_columns(_label_sides(table, right, bottom)))
    x = alt.X("rate_x:Q", title="over-refusal: benign prompts refused", axis=alt.Axis(**axis),
              scale=alt.Scale(domain=[0, right]))  # fmt: skip
    y = alt.Y("rate_y:Q", title="refusal: harmful prompts refused", axis=alt.Axis(**axis),
              scale=alt.Scale(domain=[bottom, 1]))  # fmt: skip
    colour, shape = _colour("group", groups), _shape("group", groups)
    tips = [alt.Tooltip("arm:N"), *_rate_tips("_x", "over-refusal"), *_rate_tips("_y", "refusal"),
            alt.Tooltip("broken:Q", format=".1%")]  # fmt: skip
    base = alt.Chart(data).encode(x=x, y=y, color=colour)
    lines = base.transform_filter("datum.line").mark_line(opacity=0.6).encode(order="order:Q", detail="group:N")
    rules = alt.Chart(data).mark_rule(opacity=0.5, strokeWidth=1.5).encode(color=colour)
    across, down = (
        rules.encode(x=alt.X("low_x:Q"), x2="high_x:Q", y=y),
        rules.encode(y=alt.Y("low_y:Q"), y2="high_y:Q", x=x),
    )
    # What others are held against is larger, so that it is seen behind a point that lies on it.
    size = alt.condition(f"indexof({json.dumps(NEUTRAL)}, datum.group) >= 0", alt.value(260), alt.value(90))
    dots = base.mark_point(filled=False, strokeWidth=2.5).encode(shape=shape, size=size, tooltip=tips)
    full = base.transform_filter("!datum.hollow").mark_point(filled=True, opacity=1)
    full = full.encode(shape=shape, size=size, tooltip=tips)
    return _sized(alt.layer(lines, across, down, dots, full, *_labels(base)), TRADE_OFF, groups)


def _labels(base: Any) -> list[Any]:
    """A layer of labels for each side of a point; which points it labels depends on the width of the plot."""
    phone, tablet = WIDTHS["phone"][0], WIDTHS["tablet"][0]
    side = f"(width < {phone} ? datum.phone : width < {tablet} ? datum.tablet : datum.page)"
    return [
        base.transform_filter(f"{side} == {json.dumps(name)}")
        .mark_text(align=align, baseline=baseline, dx=across * labels.GAP, dy=down * labels.GAP, fontSize=11)
        .encode(text="mark:N", color=alt.value(INK))
        for name, (align, baseline, across, down) in labels.SIDES.items()
    ]


def _label_sides(table: pl.DataFrame, right: float, bottom: float) -> list[pl.Series]:
    """For each of `WIDTHS` the side of each point's label, on a plot from 0 to `right` and from `bottom` to 1."""
    found = []
    for name, (_, width) in WIDTHS.items():

        def at(x: float, y: float, width: float = width) -> tuple[float, float]:
            return x / right * width, (1 - y) / (1 - bottom) * TRADE_OFF

        rows = table.to_dicts()
        points = [
            labels.Point(*at(row["rate_x"], row["rate_y"]), row["mark"], 9 if row["group"] in NEUTRAL else 6)
            for row in rows
        ]
        strokes = [(*at(row["low_x"], row["rate_y"]), *at(row["high_x"], row["rate_y"])) for row in rows]
        strokes += [(*at(row["rate_x"], row["high_y"]), *at(row["rate_x"], row["low_y"])) for row in rows]
        joined = table.filter("line").sort("order").group_by("group").agg("rate_x", "rate_y").to_dicts()
        for line in joined:
            ends = [at(*end) for end in zip(line["rate_x"], line["rate_y"], strict=True)]
            strokes += [(*one, *other) for one, other in itertools.pairwise(ends)]
        found.append(pl.Series(name, labels.sides(points, strokes, width, TRADE_OFF), pl.String))
    return found


def rates(table: pl.DataFrame, kinds: dict[str, str], places: Sequence[str]) -> Any:
    """Refused (with interval) and broken shares; columns `place` (data set, line break, n), `arm`, `rate`, `low`, `high`.

    Also `broken`, a share. `kinds` names each arm's group, whose colour it has here as in `trade_off`; arms of one group differ in shape.
    """
    arms, groups = list(kinds), list(dict.fromkeys(kinds.values()))
    of_group = dict(zip(groups, _cycled(COLOURS, groups, GREY), strict=True))
    scale = alt.Scale(domain=arms, range=[of_group[kinds[arm]] for arm in arms])
    lines = alt.Axis(domain=False, ticks=False, labelPadding=8, labelExpr="split(datum.label, '\\n')")
    base = alt.Chart(_data(table)).encode(
        y=alt.Y("place:N", title=None, sort=list(places), axis=lines),
        yOffset=alt.YOffset("arm:N", sort=arms, scale=alt.Scale(paddingOuter=0.6)),
        color=alt.Color("arm:N", title=None, scale=scale, legend=alt.Legend() if len(arms) > 1 else None),
    )
    axis = alt.Axis(format="%", tickCount=5)
    tips = [
        alt.Tooltip("place:N"),
        alt.Tooltip("arm:N"),
        *_rate_tips("", "refused"),
        alt.Tooltip("broken:Q", format=".1%"),
    ]
    x = alt.X("rate:Q", title="refused, with 95 % interval (✕: broken)", axis=axis, scale=alt.Scale(domain=[0, 1]))
    bars, points, broken = _rate_marks(base, x, arms, tips)
    return _sized(alt.layer(bars, points, broken), len(places) * (13 * len(arms) + 16), arms)


def beside(table: pl.DataFrame, arms: Sequence[str], places: Sequence[str]) -> Any:
    """Rates with intervals and, on the same line, published ones as hollow marks.

    Columns `place` (data set, line break, n), `arm`, `rate`, `low`, `high`, `n`, `published`, and `broken`, a share.
    """
    lines = alt.Axis(domain=False, ticks=False, labelPadding=8, labelLimit=260, labelExpr="split(datum.label, '\\n')")
    base = alt.Chart(_data(table)).encode(
        y=alt.Y("place:N", title=None, sort=list(places), axis=lines),
        yOffset=alt.YOffset("arm:N", sort=list(arms), scale=alt.Scale(paddingOuter=0.6)),
        color=_colour("arm", arms),
    )
    tips = [alt.Tooltip("place:N"), alt.Tooltip("arm:N"), *_rate_tips("", "refused here"),
            alt.Tooltip("published:Q", title="papers", format=".1%"), alt.Tooltip("broken:Q", format=".1%")]  # fmt: skip
    x = alt.X("rate:Q", title="refused; hollow: the papers; ✕: broken", axis=alt.Axis(format="%", tickCount=5),
              scale=alt.Scale(domain=[0, 1]))  # fmt: skip
    bars, ours, broken = _rate_marks(base, x, arms, tips)
    theirs = base.mark_point(filled=False, size=80, strokeWidth=1.5).encode(
        x="published:Q", shape=_shape("arm", arms), tooltip=tips
    )
    return _sized(alt.layer(bars, theirs, ours, broken), len(places) * (13 * len(arms) + 16), arms)


def _rate_marks(base: Any, x: alt.X, arms: Sequence[str], tips: list[alt.Tooltip]) -> tuple[Any, Any, Any]:
    """Intervals, points and crosses for broken shares."""
    bars = base.mark_rule(strokeWidth=2, opacity=0.7).encode(x=alt.X("low:Q", title=""), x2="high:Q")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, shape=_shape("arm", arms), tooltip=tips)
    crosses = base.transform_filter("datum.broken > 0").mark_text(text="✕", fontSize=10)
    return bars, points, crosses.encode(x="broken:Q", tooltip=tips)


def matrix(table: pl.DataFrame, names: Sequence[str]) -> Any:
    """A square of cosines; columns `a`, `b`, `cosine`."""
    base = alt.Chart(_data(table)).encode(
        x=alt.X("a:N", title=None, sort=list(names), axis=alt.Axis(labelAngle=-35, grid=False, labelOverlap=False)),
        y=alt.Y("b:N", title=None, sort=list(names), axis=alt.Axis(grid=False)),
    )
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1], reverse=True)
    squares = base.mark_rect().encode(color=alt.Color("cosine:Q", scale=scale, title="cosine"),
                                      tooltip=["a:N", "b:N", alt.Tooltip("cosine:Q", format=".3f")])  # fmt: skip
    numbers = base.mark_text(fontSize=12).encode(
        text=alt.Text("cosine:Q", format=".2f"),
        color=alt.condition("abs(datum.cosine) > 0.8", alt.value("white"), alt.value("black")),
    )
    return _sized(alt.layer(squares, numbers), max(160, 48 * len(names)))


def heat(table: pl.DataFrame, title: str) -> Any:
    """Layer against strength; columns `layer`, `strength`, `value` (a share), `broken`, `n`, `chosen`, `answered`.

    A dot marks cells that generated text, a frame the chosen one.
    """
    base = alt.Chart(_data(table)).encode(
        x=alt.X("strength:O", title="strength", axis=alt.Axis(labelAngle=0, grid=False, format="~g")),
        y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(grid=False)),
    )
    tips = ["layer:O", "strength:O", alt.Tooltip("value:Q", title=title, format=".1%"),
            alt.Tooltip("broken:Q", format=".1%"), "n:Q"]  # fmt: skip
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", title=title, scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=None),
        tooltip=tips,
    )
    numbers = base.mark_text(fontSize=12).encode(
        text=alt.Text("value:Q", format=".0%"),
        color=alt.condition("datum.value > 0.45", alt.value("black"), alt.value("white")),
    )
    dots = base.transform_filter("datum.answered").mark_point(
        filled=True, size=22, xOffset=-19, yOffset=-11, color="#D55E00", opacity=1
    )
    frame = base.transform_filter("datum.chosen").mark_rect(
        fill=None, stroke="#D55E00", strokeWidth=4, strokeOpacity=1, fillOpacity=0
    )
    return _sized(alt.layer(cells, numbers, dots, frame), 34 * table["layer"].n_unique())


def lines(
    table: pl.DataFrame,
    series: Sequence[str],
    *,
    y: str,
    zero: bool = True,
    height: int = 200,
    domain: tuple[float, float] | None = None,
) -> Any:
    """Lines over layers with a band where `low` and `high` are there; columns `layer`, `series`, `value`, `n`.

    A column `ceiling` is a dotted line a series, `floor_low` and `floor_high` a grey band behind. With `domain`, charts side by
    side share their y axis.
    """
    axis = alt.X("layer:Q", axis=alt.Axis(tickMinStep=1, format="d"), title="layer", scale=alt.Scale(nice=False))
    base = alt.Chart(_data(table)).encode(x=axis, color=_colour("series", series, line=True))
    tips = ["series:N", "layer:Q", alt.Tooltip("value:Q", title=y, format=".2f")]
    tips += [alt.Tooltip(f"{name}:Q", format=".2f") for name in ("low", "high") if name in table.columns]
    tips += ["n:Q"] if "n" in table.columns else []
    scale = alt.Scale(zero=zero, nice=True) if domain is None else alt.Scale(domain=list(domain), nice=True)
    drawn = base.mark_line(point=alt.OverlayMarkDef(size=30, filled=True)).encode(
        y=alt.Y("value:Q", title=y, scale=scale, axis=alt.Axis(tickCount=5)),
        strokeDash=_dash("series", series),
        tooltip=tips,
    )
    layers = [drawn]
    if "low" in table.columns:
        layers.insert(0, base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=y, scale=scale), y2="high:Q"))
    if "floor_low" in table.columns:
        apart = base.encode(color=alt.value(GREY), detail="series:N")
        floor = apart.mark_area(opacity=0.25).encode(y=alt.Y("floor_low:Q", title=y, scale=scale), y2="floor_high:Q")
        layers.insert(0, floor)
    if "ceiling" in table.columns:
        top = base.mark_line(strokeDash=[2, 3], strokeWidth=2).encode(y=alt.Y("ceiling:Q", title=y, scale=scale))
        layers.insert(0, top)
    return _sized(alt.layer(*layers), height, series)


def by_tokens(table: pl.DataFrame, arms: Sequence[str]) -> Any:
    """Rates over answer lengths, with intervals; columns `tokens`, `arm`, `rate`, `low`, `high`, `n`, `n_cut`."""
    ticks = sorted(table["tokens"].unique())
    x = alt.X("tokens:Q", title="new tokens that an answer is cut at", scale=alt.Scale(type="log", base=2, nice=False, padding=20),
              axis=alt.Axis(values=ticks, format="d", grid=False))  # fmt: skip
    base = alt.Chart(_data(table)).encode(x=x, color=_colour("arm", arms))
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("tokens:Q"),
        *_rate_tips("", "refused"),
        alt.Tooltip("n_cut:Q", title="cut"),
    ]
    share = {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", tickCount=5)}
    y = alt.Y("rate:Q", title="refused, with 95 % interval", **share)
    lines = base.mark_line(opacity=0.7).encode(y=y)
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=alt.Y("low:Q", title="", **share), y2="high:Q")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=_shape("arm", arms), tooltip=tips)
    return _sized(alt.layer(lines, bars, points), 240, arms)


def scatter(table: pl.DataFrame, groups: Sequence[str], titles: tuple[str, str]) -> Any:
    """Points in a plane; columns `x`, `y`, `group`."""
    points = alt.Chart(_data(table)).mark_point(size=26, opacity=0.7, filled=True)
    points = points.encode(
        x=alt.X("x:Q", title=titles[0], axis=alt.Axis(tickCount=5)),
        y=alt.Y("y:Q", title=titles[1], axis=alt.Axis(tickCount=5)),
        color=_colour("group", groups),
        shape=_shape("group", groups),
        tooltip=["group:N"],
    )
    return _sized(points, 400, groups)


def roc(table: pl.DataFrame, marks: pl.DataFrame, splits: Sequence[str]) -> Any:
    """Receiver operating characteristic; columns `fpr`, `tpr`, `threshold`, `series`; `marks` are points on it."""
    share = {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", tickCount=5)}
    x = alt.X("fpr:Q", title="benign prompts called harmful", **share)
    y = alt.Y("tpr:Q", title="harmful prompts called harmful", **share)
    diagonal = alt.Chart(_data(pl.DataFrame({"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]}))).mark_line(
        color=GREY, strokeDash=[4, 3], strokeWidth=1
    )
    curves = alt.Chart(_data(table)).mark_line(interpolate="step-after").encode(
        x=x, y=y, color=_colour("series", splits, line=True), strokeDash=_dash("series", splits), order="order:Q"
    )  # fmt: skip
    dots = alt.Chart(_data(marks)).mark_point(size=140, strokeWidth=2.5, opacity=1, stroke=INK).encode(
        x=x, y=y, tooltip=[alt.Tooltip("fpr:Q", format=".1%"), alt.Tooltip("tpr:Q", format=".1%"),
                           alt.Tooltip("threshold:Q", format=".3f")]
    )  # fmt: skip
    return _sized(alt.layer(diagonal.encode(x=x, y=y), curves, dots), 300, splits)


def intervals(table: pl.DataFrame, rows: Sequence[str], *, x: str) -> Any:
    """A point with its interval a row; columns `row`, `value`, `low`, `high`, `n`."""
    base = alt.Chart(_data(table)).encode(y=alt.Y("row:N", title=None, sort=list(rows)), color=alt.value(COLOURS[0]))
    tips = ["row:N", alt.Tooltip("value:Q", title=x, format=".3~g"),
            *(alt.Tooltip(f"{end}:Q", format=".3~g") for end in ("low", "high")), "n:Q"]  # fmt: skip
    scale = alt.Scale(zero=False, nice=True)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=x, scale=scale), x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("value:Q", title=x, scale=scale, axis=alt.Axis(tickCount=4)), tooltip=tips
    )
    return _sized(alt.layer(bars, points), 26 * len(rows))


def _sized(chart: Any, height: int, names: Sequence[str] = ()) -> Any:
    """As wide as its place; `usermeta` tells the page how much room each name of its legend takes."""
    room = 34 + 7 * max(map(len, names), default=0)
    return chart.properties(width="container", height=height, usermeta={"legend": room})


def _data(table: pl.DataFrame) -> alt.InlineData:
    """Rows as Vega-Lite takes them; what is no number in JSON becomes null."""
    clean = table.with_columns(pl.selectors.float().replace([math.inf, -math.inf, math.nan], None))
    return alt.InlineData(values=clean.to_dicts())


def _rate_tips(suffix: str, title: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip(f"rate{suffix}:Q", title=title, format=".1%"),
        alt.Tooltip(f"low{suffix}:Q", title="from", format=".1%"),
        alt.Tooltip(f"high{suffix}:Q", title="to", format=".1%"),
        alt.Tooltip(f"n{suffix}:Q", title="n"),
    ]


def _cycled(values: Sequence[Any], names: Sequence[str], grey: Any, step: int = 0) -> list[Any]:
    """A value a name; what others are held against has its own, and they keep theirs whether it is there or not.

    With `step` the values are moved on after each round, so that two cycles meet again only after all their pairs.
    """
    others = {name: at for at, name in enumerate(name for name in names if name not in NEUTRAL)}
    size = len(values)
    return [
        grey if name in NEUTRAL else values[(others[name] + step * (others[name] // size)) % size] for name in names
    ]


def _colour(field: str, names: Sequence[str], *, line: bool = False) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=_cycled(COLOURS, names, GREY))
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=_legend(names, line=line))


def _shape(field: str, names: Sequence[str]) -> alt.Shape:
    scale = alt.Scale(domain=list(names), range=_cycled(SHAPES, names, "cross", 1))
    return alt.Shape(f"{field}:N", title=None, scale=scale, legend=_legend(names))


def _dash(field: str, names: Sequence[str]) -> alt.StrokeDash:
    scale = alt.Scale(domain=list(names), range=_cycled(DASHES, names, [1, 1], 1))
    return alt.StrokeDash(f"{field}:N", title=None, scale=scale, legend=_legend(names, line=True))


def _legend(names: Sequence[str], *, line: bool = False) -> alt.Legend | None:
    """None for a single series; lines are shown as such, so that their dashes can be told apart."""
    if len(names) < 2:
        return None
    return alt.Legend(symbolType="stroke", symbolSize=500, symbolStrokeWidth=2) if line else alt.Legend()
