"""The results as a Markdown table and as a chart."""

from typing import Any

PLAIN, BAD = "#0072B2", "#D55E00"


def markdown(found: dict[str, Any]) -> str:
    """A table; times are medians, ratios medians of the turns' own, with the least and the greatest."""
    machine, options = found["machine"], found["options"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# Speed beside other ways\n",
        f"{found['when']}; {machine['cpu']}, {machine['threads']} threads; {machine['system']}; {versions}. "
        f"SmolLM2-135M (extraction: {options['model']}), float32, layer 17 of 30; {options['prompts']} prompts "
        f"({options['data']}), of generation {options['answers']} with {options['tokens']} new tokens; "
        f"{options['turns']} turns" + (", processor time" if options["cpu_time"] else "") + ". `make bench`\n",
        "| work | against | s, this tool | s, the other | ratio (least–greatest) | must be | holds | results |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if "missing" in row:
            lines.append(f"| {row['work']} | {row['peer']} | | | | | | not run: {row['missing']} |")
            continue
        seconds = row["seconds"] or ("", "")
        unit = f" {row['unit']}" if "unit" in row else ("" if row["cost"] else " ×")
        asked = "" if row["bound"] is None else f"{'≤' if row['cost'] else '≥'} {row['bound']}{unit}"
        spread = f" ({number(min(row['ratios']))}–{number(max(row['ratios']))})" if len(row["ratios"]) > 1 else ""
        holds = {True: "yes", False: "no", None: ""}[row["holds"]]
        cells = (
            row["work"],
            row["peer"],
            *seconds,
            f"{number(row['ratio'])}{unit}{spread}",
            asked,
            holds,
            row["results"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Two places, or none where there is nothing behind the point."""
    return f"{value:.0f}" if value == int(value) and value > 1 else f"{value:.2f}"


def chart_page(found: dict[str, Any]) -> str:
    """How many times as fast this tool is, in a page of its own which needs nothing from elsewhere."""
    import altair as alt
    import polars as pl
    import vl_convert

    rows = [row for row in found["rows"] if "missing" not in row and not row["cost"]]
    table = pl.DataFrame(
        [
            {
                "what": f"{row['work']} / {row['peer'].replace('`', '')}",
                "ratio": row["ratio"],
                "low": min(row["ratios"]),
                "high": max(row["ratios"]),
                "bound": row["bound"],
                "said": f"{row['ratio']:.1f} ×",
                "colour": BAD if row["holds"] is False else PLAIN,
            }
            for row in rows
        ]
    )
    most = max(row["high"] for row in table.to_dicts())
    scale = alt.Scale(type="log", domain=[0.8, 1.4 * most], nice=False)
    axis = alt.Axis(values=[1, 2, 3, 5, 8, 10, 15, 20], format="~g", grid=True)
    base = alt.Chart(table).encode(y=alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=560)))
    x = alt.X("ratio:Q", title="times as fast, log scale", scale=scale, axis=axis)
    colour = alt.Color("colour:N", scale=None)
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", color=colour)
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(x=x, color=colour)
    words = base.mark_text(align="left", dx=9).encode(x="high:Q", text="said:N")
    ticks = base.transform_filter("isValid(datum.bound)").mark_tick(color="#1b1f24", thickness=2).encode(x="bound:Q")
    title = alt.Title(
        "How many times as fast as other ways",
        subtitle=f"{found['machine']['cpu']}, {found['machine']['threads']} threads. Dot: median; line: least to greatest "
        f"of {found['options']['turns']} turns; tick: the least that must hold.",
    )
    picture = vl_convert.vegalite_to_svg((lines + ticks + dots + words).properties(width=420, title=title).to_json())
    return f"<!doctype html>\n<meta charset='utf-8'>\n<title>Speed beside other ways</title>\n{picture}\n"
