"""The results as a Markdown table and as a chart."""

from typing import Any

GOOD, BAD, PLAIN = "#00875F", "#D55E00", "#5B7A8C"


def markdown(found: dict[str, Any]) -> str:
    """A table; times are medians, ratios medians of the turns' own, with the least and the greatest."""
    machine, options = found["machine"], found["options"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# Speed beside other ways\n",
        f"{found['when']}; {machine['cpu']}, {machine['threads']} threads; {machine['system']}; {versions}. "
        f"SmolLM2-135M (extraction: {options['model']}), float32, layer 17 of 30; {options['prompts']} prompts ({options['data']}), of generation "
        f"{options['answers']} with {options['tokens']} new tokens; {options['turns']} turns"
        + (", processor time" if options["cpu_time"] else "")
        + ". `make bench`\n",
        "| work | against | s, this tool | s, the other | ratio (least–greatest) | asked | holds | results |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if "missing" in row:
            lines.append(f"| {row['work']} | {row['peer']} | | | | | | not run: {row['missing']} |")
            continue
        seconds = row["seconds"] or ("", "")
        unit = f" {row['unit']}" if "unit" in row else ("" if row["cost"] else " ×")
        asked = "" if row["bound"] is None else f"{'≤' if row['cost'] else '≥'} {row['bound']}{unit}"
        spread = f" ({min(row['ratios'])}–{max(row['ratios'])})" if len(row["ratios"]) > 1 else ""
        holds = {True: "yes", False: "no", None: ""}[row["holds"]]
        cells = (row["work"], row["peer"], *seconds, f"{row['ratio']}{unit}{spread}", asked, holds, row["results"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def chart_page(found: dict[str, Any]) -> str:
    """The ratios as a chart in a page of its own, which needs nothing from elsewhere."""
    import altair as alt
    import polars as pl
    import vl_convert

    rows = [row for row in found["rows"] if "missing" not in row and "unit" not in row]
    table = pl.DataFrame(
        [
            {
                "what": f"{row['work']} / {row['peer'].replace('`', '')}",
                "ratio": row["ratio"],
                "low": min(row["ratios"]),
                "high": max(row["ratios"]),
                "bound": row["bound"],
                "state": {True: "as asked", False: "not as asked", None: "nothing asked"}[row["holds"]],
            }
            for row in rows
        ]
    )
    y = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=560))
    x = alt.X("ratio:Q", title="ratio of times, log scale", scale=alt.Scale(type="log"))
    scale = alt.Scale(domain=["as asked", "not as asked", "nothing asked"], range=[GOOD, BAD, PLAIN])
    base = alt.Chart(table).encode(y=y, color=alt.Color("state:N", scale=scale, title=None))
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = base.mark_point(filled=True, size=80).encode(x=x)
    ticks = (
        base.transform_filter("isValid(datum.bound)").mark_tick(color="#1b1f24", thickness=2).encode(x=alt.X("bound:Q"))
    )
    chart = (spread + dots + ticks).properties(width=420, title="Dots: medians; lines: all turns; ticks: what is asked")
    picture = vl_convert.vegalite_to_svg(chart.to_json())
    return f"<!doctype html>\n<meta charset='utf-8'>\n<title>Speed beside other ways</title>\n{picture}\n"
