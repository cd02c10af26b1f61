"""The report: one HTML file that opens anywhere, offline. All text of prompts and models is escaped."""

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from data.errors import UserError
from interventions.rundir import records, replacing
from interventions.vectors import SteeringVectors
from reports import charts

SAMPLES = 60
LONGEST = 2000
DRAW = """
for (const spec of document.querySelectorAll("script[type='application/json']")) {
  const place = document.getElementById(spec.dataset.chart);
  vegaEmbed(place, JSON.parse(spec.textContent), {actions: false, renderer: "svg", ast: true})
    .catch((error) => { place.textContent = "This chart could not be drawn: " + error; });
}
"""


def write_report(folder: Path, path: Path) -> list[str]:
    """Write one self-contained HTML page of whatever the run directory holds; returns its section titles.

    Raises:
        UserError: There is nothing to report.
    """
    kept = records(folder)
    tables = {name: _read(folder / f"{name}.parquet") for name in ("traces", "generations", "scores", "summary")}
    vectors = (
        SteeringVectors.load(folder / "vectors.safetensors") if (folder / "vectors.safetensors").exists() else None
    )
    specs: dict[str, str] = {}
    sections = [
        *_answer(tables["summary"]),
        *_rates(tables["summary"], specs),
        *_vectors(vectors, specs),
        *_traces(tables["traces"], specs),
        *_samples(tables["generations"], tables["scores"]),
    ]
    if not sections:
        raise UserError(f"nothing to report in {folder}: run `python cli.py extract vectors trace evaluate` first")
    sections.append(_provenance(kept))
    with replacing(path) as unfinished:
        unfinished.write_text(_page(kept, sections, specs), encoding="utf-8")
    return [title for title, _ in sections]


def escape(value: Any) -> str:
    """HTML text of anything; None is a dash, long text is cut, control characters are shown as such."""
    if value is None:
        return "–"
    text = str(value)
    if len(text) > LONGEST:
        text = text[:LONGEST] + f" … ({len(text) - LONGEST:,} more characters)"
    shown = "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return html.escape(shown, quote=True)


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: no character that could end it."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(path: Path) -> pl.DataFrame | None:
    return pl.read_parquet(path) if path.exists() else None


def _chart(name: str, chart: alt.TopLevelMixin, specs: dict[str, str], text: str) -> str:
    specs[name] = as_json(chart.to_dict())
    return f'<figure class="chart" role="img" aria-label="{escape(text)}" id="{name}"></figure><p class="note">{escape(text)}</p>'


def _table(frame: pl.DataFrame, texts: tuple[str, ...] = ()) -> str:
    head = "".join(
        f'<th class="{"number" if kind.is_numeric() else ""}">{escape(name)}</th>'
        for name, kind in frame.schema.items()
    )
    body = []
    for row in frame.iter_rows(named=True):
        cells = []
        for name, value in row.items():
            kind = "text" if name in texts else "number" if isinstance(value, (int, float)) else ""
            shown = f"{value:.3g}" if isinstance(value, float) else value
            cells.append(f'<td class="{kind}" dir="auto">{escape(shown)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _answer(summary: pl.DataFrame | None) -> list[tuple[str, str]]:
    if summary is None:
        return []
    sentences = []
    for label, meaning in (("benign", "harmless prompts"), ("harmful", "prompts that should be declined")):
        rows = summary.filter(
            (pl.col("dataset") == "(pooled)") & (pl.col("label") == label) & (pl.col("scorer") == "phrases")
        )
        baseline = rows.filter(pl.col("kind") == "baseline").to_dicts()
        for arm in rows.filter(pl.col("kind") != "baseline").to_dicts():
            if not baseline or arm["delta"] is None:
                continue
            before = baseline[0]
            low, high = 100 * arm["delta_low"], 100 * arm["delta_high"]
            sure = "" if low > 0 or high < 0 else ": no difference is shown"
            sentences.append(
                f"On {arm['n']} {meaning}, arm <b>{escape(arm['arm'])}</b> refuses {arm['rate']:.1%}"
                f" (broken answers {arm['broken'] / arm['n']:.1%}), the baseline {before['rate']:.1%}"
                f" (broken {before['broken'] / before['n']:.1%}): a change of {100 * arm['delta']:+.1f} points,"
                f" 95 % interval {low:+.1f} to {high:+.1f}{sure}."
            )
    text = "".join(f'<p class="answer">{sentence}</p>' for sentence in sentences)
    return [("What steering did", text)] if text else []


def _rates(summary: pl.DataFrame | None, specs: dict[str, str]) -> list[tuple[str, str]]:
    if summary is None or summary.is_empty():
        return []
    drawn = summary.filter(~pl.col("dataset").is_in(["(macro)"]) & (pl.col("n") > 0))
    listed = summary
    if summary["dataset"].n_unique() <= 3:  # one data set: the pooled and macro rows say the same
        drawn = drawn.filter(pl.col("dataset") != "(pooled)")
        listed = summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"]))
    drawn = drawn.with_columns(
        (pl.col("broken") / pl.col("n")).alias("share_broken"),
        pl.format("{}, {}, by {}", "dataset", pl.col("label").fill_null("no label"), "scorer").alias("panel"),
    )
    columns = ["dataset", "label", "arm", "scorer", "n", "n_failed", "n_overlap", "refused", "rate", "low", "high", "broken",
               "answered", "delta", "delta_low", "delta_high", "p", "p_holm"]  # fmt: skip
    overlap = int(summary.filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"]))["n_overlap"].sum())
    text = (
        "Share of answers refused, with Wilson 95 % intervals, and share of broken answers, by data set, label and arm."
    )
    chart = (
        _chart(
            "rates",
            charts.refusal_rates(
                drawn.select("dataset", "label", "arm", "n", "rate", "low", "high", "share_broken", "panel")
            ),
            specs,
            text,
        )
        if drawn.height
        else ""
    )
    note = (
        f'<p class="note">delta: arm − baseline on the same rows, Newcombe interval; p: exact McNemar; p_holm: Holm over data '
        f"set × label × arm. {overlap} rows were left out because their text was used for fitting.</p>"
    )
    return [("Refusal rates", chart + _table(listed.select(columns)) + note)]


def _vectors(vectors: SteeringVectors | None, specs: dict[str, str]) -> list[tuple[str, str]]:
    if vectors is None:
        return []
    layers = vectors.layers
    layer = layers[min(round(18 / 32 * len(layers)), len(layers) - 1)]
    table = vectors.table(layer)
    names = table["category"].to_list()
    cosines = pl.DataFrame(
        [{"a": a, "b": b, "cosine": table[f"cos {b}"][i]} for i, a in enumerate(names) for b in names]
    )
    text = f"Cosine similarity between the steering vectors of {len(names)} categories at layer {layer}."
    body = _chart("cosines", charts.cosine_matrix(cosines, layer), specs, text)
    return [("Steering vectors", body + _table(table.select("category", "rows", "norm")))]


def _traces(traces: pl.DataFrame | None, specs: dict[str, str]) -> list[tuple[str, str]]:
    if traces is None or traces.is_empty():
        return []
    group = (
        pl.when(pl.col("label") == "benign")
        .then(pl.lit("benign"))
        .otherwise(pl.coalesce("prompt_category", pl.lit("no label")))
    )
    projected = (
        traces.select(group.alias("group"), "projections")
        .explode("projections")
        .unnest("projections")
        .group_by("group", "category", "layer", maintain_order=True)
        .agg(pl.col("value").mean(), pl.len().alias("n"))
    )
    text = f"Mean projection of the unsteered residual stream at the last prompt token, {traces.height} traced prompts."
    chart = _chart("projections", charts.projection_by_layer(projected), specs, text)
    first = traces.row(0, named=True)

    def tops(column: str) -> pl.Series:
        return pl.Series(
            [", ".join(f"{t['token']!r} {t['probability']:.0%}" for t in row[:3]) for row in traces[column]]
        )

    table = pl.DataFrame(
        {
            "prompt": traces["prompt"],
            "KL (nats)": traces["kl"],
            "next token": tops("top_unsteered"),
            "next token, steered": tops("top_steered"),
            "text": traces["text_unsteered"],
            "text, steered": traces["text_steered"],
        }
    ).head(SAMPLES)
    how = (
        f'<p class="note">Steered with the vector of {escape(first["category"])} at layer {first["layer"]}, strength '
        f"{first['strength']:g} ({escape(first['strength_unit'])}), scope {escape(first['scope'])}.</p>"
    )
    shown = _table(table, ("prompt", "text", "text, steered"))
    return [("Projection by layer", chart), ("Unsteered and steered, side by side", how + shown)]


def _samples(generations: pl.DataFrame | None, scores: pl.DataFrame | None) -> list[tuple[str, str]]:
    if generations is None or scores is None or generations.is_empty():
        return []
    verdicts = scores.filter(pl.col("scorer") == "phrases").select("dataset", "id", "arm", "verdict")
    joined = generations.join(verdicts, on=["dataset", "id", "arm"])
    arms = generations["arm"].unique(maintain_order=True).to_list()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in joined.iter_rows(named=True):
        shown = rows.setdefault(
            (row["dataset"], row["id"]),
            {"prompt": row["prompt"], "category": row["category"], "label": row["label"], **dict.fromkeys(arms)},
        )
        shown[row["arm"]] = f"[{row['verdict']}] {row['response']}"
    table = pl.DataFrame(list(rows.values())[:SAMPLES], infer_schema_length=None)
    note = f'<p class="note">{table.height} of {len(rows)} prompts; all are in generations.parquet.</p>'
    return [("Answers", note + _table(table, ("prompt", *arms)))]


def _provenance(kept: dict[str, Any]) -> tuple[str, str]:
    rows = []
    for name, entry in kept.items():
        rows.append(
            {
                "artefact": name,
                "command": entry.get("command"),
                "model": f"{entry.get('model')} {entry.get('revision') or ''}",
                "data": ", ".join(entry.get("data") or []),
                "backend": entry.get("backend"),
                "seed": str(entry.get("seed")),
                "made": entry.get("end"),
            }
        )
    versions = next(iter(kept.values()), {}).get("versions", {})
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    body = _table(pl.DataFrame(rows), ("command",)) if rows else ""
    return "How it was made", body + f'<p class="note">{escape(listed)}</p>'


def _page(kept: dict[str, Any], sections: list[tuple[str, str]], specs: dict[str, str]) -> str:
    import vl_convert

    model = next((entry.get("model") for entry in kept.values() if entry.get("model")), "a model")
    # The stub of vl_convert lacks the default.
    bundle = vl_convert.javascript_bundle() if specs else ""  # pyright: ignore[reportCallIssue]
    scripts = [script for script in (bundle, DRAW if specs else "") if script]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes or chr(39) + 'none' + chr(39)}"
    style = (Path(__file__).parent / "page.css").read_text()
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections)
    data = "".join(
        f'<script type="application/json" data-chart="{name}">{spec}</script>' for name, spec in specs.items()
    )
    code = "".join(f"<script>{script}</script>" for script in scripts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Refusal in {escape(model)}</title><style>{style}</style></head><body>"
        f"<header><h1>Refusal in {escape(model)}</h1></header><main>{body}</main>{data}{code}</body></html>\n"
    )
