"""How the cost grows: prompts, their length, layers read, strengths swept, tokens a batch; and that results stay the same.

The cost of extraction is per unique token: what all prompts begin with counts once. Points of a series are measured in
turns, and each is the median of its turns. Run: .venv/bin/python benchmarks/scaling.py
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

from data import load_all
from data.store.rundir import versions
from interventions import SteeringVectors, extract, open_model
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.reading.packing import common_opening
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.batches import answer_rows
from interventions.steering.plans import Tools, plan_arm

LAYER = 17
SERIES = {
    "prompts": (100, 300, 1000, 3000),
    "length": (16, 32, 64, 128, 256, 512),
    "layers": (1, 5, 10, 18),
    "batch tokens": (256, 512, 1024, 2048, 4096, 8192),
    "strengths": (1, 2, 4, 8, 16, 32),
}


@dataclass(frozen=True)
class Point:
    """One measurement: `run` gives results that do not depend on what the series varies, (rows, …)."""

    series: str
    value: int
    unique_tokens: int
    run: Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16384, help="of each length; default 16,384")
    parser.add_argument("--most-prompts", type=int, default=3000)
    parser.add_argument("--only", action="append", help=f"a series: {', '.join(SERIES)}")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: for a machine that is busy")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model = open_model("smollm2")
    points = [*by_prompts(model, options.most_prompts), *by_length(model, options.tokens), *by_layers(model)]
    points += [*by_batch(model), *by_strengths(open_model())]
    points = [point for point in points if not options.only or point.series in options.only]
    found = {
        "when": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": versions(),
        "cpu_time": options.cpu_time,
        "points": measured(points, options.turns, time.process_time if options.cpu_time else time.perf_counter),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "scaling.md").write_text(markdown(found))
    (options.out / "scaling.html").write_text(page(found))
    print(markdown(found))


def measured(points: list[Point], turns: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Each point's median; and how far its results are from those of its series' first point."""
    took: dict[int, list[float]] = {}
    results: dict[int, np.ndarray] = {}
    for turn in range(turns + 1):
        for at, point in enumerate(points):
            if turn == 0 and point is not points[0] and points[at - 1].series == point.series:
                continue  # one of each series warms up
            start = clock()
            results[at] = point.run()
            if turn:
                took.setdefault(at, []).append(clock() - start)
    noted = []
    for at, point in enumerate(points):
        first = results[next(other for other, one in enumerate(points) if one.series == point.series)]
        rows = min(len(first), len(results[at])) if point.series != "length" else 0
        gaps = np.linalg.norm(first[:rows] - results[at][:rows], axis=-1) / np.linalg.norm(first[:rows], axis=-1)
        seconds = statistics.median(took[at])
        noted.append(
            {
                "series": point.series,
                "value": point.value,
                "unique_tokens": point.unique_tokens,
                "seconds": round(seconds, 3),
                "microseconds_a_token": round(seconds / point.unique_tokens * 1e6, 1),
                "turns": [round(one, 3) for one in took[at]],
                "difference": float(gaps.max()) if rows else None,
            }
        )
    return noted


def table(prompts: list[str]) -> pl.DataFrame:
    named = {"id": [str(at) for at in range(len(prompts))], "prompt": prompts}
    empty = [pl.lit(None, pl.String).alias(name) for name in ("category", "label", "split")]
    return pl.DataFrame(named).with_columns(pl.lit("bench").alias("dataset"), *empty)


def reading(
    model: Model, prompts: list[str], layers: list[int], batch_tokens: int | None = None
) -> tuple[int, Callable[[], np.ndarray]]:
    """Unique tokens, and a run that gives the residuals of the last of `layers`."""
    ids = encode(model.tokenizer, prompts).ids
    opening = common_opening(ids)

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = extract(model, table(prompts), Path(folder), layers=layers, batch_tokens=batch_tokens)
            return load_file(path)["activations"][:, -1].numpy()

    return sum(map(len, ids)) - opening * (len(ids) - 1), run


def sample(many: int) -> list[str]:
    """Prompts of the embedded sample, each a little different from the others."""
    texts = load_all(["embedded"])["prompt"].to_list()
    return [texts[at % len(texts)] + (f" ({at // len(texts)})" if at >= len(texts) else "") for at in range(many)]


def by_prompts(model: Model, most: int) -> list[Point]:
    counts = [many for many in SERIES["prompts"] if many <= most]
    return [Point("prompts", many, *reading(model, sample(many), [LAYER])) for many in counts]


def by_length(model: Model, tokens: int) -> list[Point]:
    """As many tokens in all, in fewer and longer prompts."""
    words, found = " ".join(sample(400)).split(), []
    for length in SERIES["length"]:
        many = max(2, tokens // length)
        prompts = [" ".join(words[(at * 7) % 400 :][: max(1, int(length / 1.3))]) for at in range(many)]
        found.append(Point("length", length, *reading(model, prompts, [LAYER])))
    return found


def by_layers(model: Model) -> list[Point]:
    """Several layers, the deepest always the same."""
    return [
        Point("layers", many, *reading(model, sample(200), list(range(LAYER + 1 - many, LAYER + 1))))
        for many in SERIES["layers"]
    ]


def by_batch(model: Model) -> list[Point]:
    return [Point("batch tokens", size, *reading(model, sample(400), [LAYER], size)) for size in SERIES["batch tokens"]]


def by_strengths(model: Model) -> list[Point]:
    """First-token sweeps; a token is a prompt's, or a strength's last one."""
    prompts = sample(96)
    encoded = encode(model.tokenizer, prompts)
    opening = common_opening(encoded.ids)
    unique = sum(map(len, encoded.ids)) - opening * (len(prompts) - 1)
    known = {"layers": json.dumps([LAYER]), "counts": '{"a": 1}', "residual_norms": "[1.0]"}
    direction = torch.nn.functional.normalize(torch.ones(1, model.d_model), dim=-1)
    tools, nobody = Tools(SteeringVectors({"a": direction}, known)), [{"category": None, "label": None}] * len(prompts)
    found = []
    for many in SERIES["strengths"]:
        words = [f"fixed:strength={at + 1}" for at in range(many)]
        plans = [plan_arm(model, arm, tools, nobody) for arm in parse_arms(words, Arm("a", "fixed", LAYER, unit="raw"))]

        def run(plans: Any = plans) -> np.ndarray:
            refusal = answer_rows(model, encoded, range(len(prompts)), plans, (), 0).refusal
            assert refusal is not None
            return refusal[:, :1].numpy()

        found.append(Point("strengths", many, unique + (many - 1) * len(prompts), run))
    return found


def markdown(found: dict[str, Any]) -> str:
    lines = [
        "# How the cost grows\n",
        f"{found['when']}; {found['machine']}; torch {found['versions'].get('torch')}, nnsight "
        f"{found['versions'].get('nnsight')}; SmolLM2-135M, float32, layer {LAYER}"
        + ("; processor time" if found["cpu_time"] else "")
        + ". A unique token is one that is not the same in all prompts; of sweeps, also each strength's.\n",
        "| series | | unique tokens | s | µs a unique token | differs from the first by at most |",
        "|---|---|---|---|---|---|",
    ]
    for point in found["points"]:
        gap = "" if point["difference"] is None else f"{point['difference']:.0e}"
        cells = (point["series"], point["value"], f"{point['unique_tokens']:,}", point["seconds"])
        lines.append(f"| {' | '.join(map(str, cells))} | {point['microseconds_a_token']:,} | {gap} |")
    return "\n".join(lines) + "\n"


def page(found: dict[str, Any]) -> str:
    """µs a unique token in every series, in a page that needs nothing from elsewhere."""
    import altair as alt
    import vl_convert

    data = pl.DataFrame(
        [{name: point[name] for name in ("series", "value", "microseconds_a_token")} for point in found["points"]]
    )
    chart = (
        alt.Chart(data)
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "value:Q", scale=alt.Scale(type="log", nice=False, padding=8), title=None, axis=alt.Axis(tickCount=5)
            ),
            y=alt.Y("microseconds_a_token:Q", scale=alt.Scale(zero=True), title="µs a unique token"),
        )
        .properties(width=220, height=160)
        .facet(facet=alt.Facet("series:N", title=None, sort=list(SERIES)), columns=3)
        .resolve_scale(x="independent")
    )
    picture = vl_convert.vegalite_to_svg(chart.to_json())
    return f"<!doctype html>\n<meta charset='utf-8'>\n<title>How the cost grows</title>\n{picture}\n"


if __name__ == "__main__":
    main()
