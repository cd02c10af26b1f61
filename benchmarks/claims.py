"""Do the papers' claims hold on this model? Causal, selective, and the whole trade-off, beside controls.

Run: .venv/bin/python benchmarks/claims.py RUN [--mirror FOLDER] [--controls N] [--max-new-tokens N]

- Vectors, gate and setting are fitted and chosen on the embedded sample's training and validation rows. What is shown are
  its test rows or, with a mirror of the hub, CoCoNot's test and contrast sets and XSTest's safe prompts.
- (a) Causal: away from refusal without a gate takes over-refusal away; random directions of the same norm don't.
- (b) Selective: at the setting that `sweep` chose on validation rows, gated: over-refusal falls, refusal stays.
  Controls under the same gate, scope and norm: twenty random directions, another category's vector, a logit bias.
- (c) The trade-off: strengths with a gate and without, beside a bias on the respond token's logit.

Everything is the command line's own work, in one run directory, and resumes. The table is Markdown on stdout.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from data import load_all

ROOT = Path(__file__).parents[1]
STRENGTHS = (-0.15, -0.3, -0.45)
BIASES = (1, 2, 4)
RANDOM, RANDOM_UNGATED = 20, 5


def cli(*words):
    subprocess.run([sys.executable, str(ROOT / "cli.py"), *map(str, words)], check=True)


def setting(run):
    """Layer, strength, unit and strength towards refusal that the sweep chose among gated arms."""
    rows = pl.read_parquet(run / "sweep.parquet").filter((pl.col("kind") == "gated") & pl.col("layer").is_not_null())
    chosen = rows.filter("chosen")
    if chosen.is_empty():  # none did no harm: the one that kept most refusal among those that were generated with
        tried = rows.filter(pl.col("refused").is_not_null() & (pl.col("label") == "harmful"))
        chosen = tried.sort("refused", descending=True).head(1)
    return chosen.row(0, named=True)


def place_of(chosen):
    return f"layer={chosen['layer']},unit={chosen['strength_unit']}"


def best_arm(chosen, strength=None):
    size = chosen["strength"] if strength is None else strength
    return f"gated:harmful={chosen['harmful']:g},{place_of(chosen)},strength={size:g}"


def trade_off(chosen):
    """The chosen setting, and strengths with a gate and without, beside a bias on the respond token's logit."""
    others = [s for s in STRENGTHS if s != round(chosen["strength"], 4)]
    return [
        "baseline",
        best_arm(chosen),
        *(best_arm(chosen, s) for s in others),
        *(f"routed:{place_of(chosen)},strength={s:g}" for s in STRENGTHS),
        *(f"logit-bias:category=respond,strength={bias}" for bias in BIASES),
    ]


def controls(chosen):
    """The chosen setting beside what takes the vectors' place under the same gate, and random directions without one."""
    same = f"harmful={chosen['harmful']:g},{place_of(chosen)},route=gated,strength={chosen['strength']:g}"
    strongest = f"{place_of(chosen)},strength={STRENGTHS[-1]:g}"
    return [
        "baseline",
        best_arm(chosen),
        *(f"random:seed={seed},{same}" for seed in range(RANDOM)),
        f"wrong-category:{same}",
        *(f"logit-bias:category=respond,harmful=0,route=gated,strength={bias}" for bias in BIASES[1:3]),
        f"routed:{strongest}",
        *(f"random:seed={seed},{strongest}" for seed in range(RANDOM_UNGATED)),
    ]


def group(arm):
    """What the table calls an arm; random directions share a line."""
    kind, _, rest = arm.partition(":")
    keys = dict(pair.split("=") for pair in rest.split(",")) if rest else {}
    gated = kind == "gated" or keys.get("route") == "gated"
    size = f" {float(keys['strength']):+g}" if "strength" in keys else ""
    return f"{kind}{', gated' if gated and kind != 'gated' else ''}{size}"


def table(run, scorer):
    """Markdown: one line a group of arms, one column a data set; rate (interval), broken, and the paired difference."""
    rows = pl.read_parquet(run / "summary.parquet").filter((pl.col("scorer") == scorer) & (pl.col("n") > 0))
    rows = rows.filter(pl.col("dataset") != "(macro)").with_columns(
        pl.col("arm").map_elements(group, return_dtype=pl.String).alias("group")
    )
    sets = (
        rows.select("dataset", "label", "n")
        .unique(maintain_order=True)
        .unique(["dataset", "label"])
        .sort("label", "dataset")
    )
    heads = [f"{name}, {label} (n = {n})" for name, label, n in sets.rows()]
    lines = [f"| arm, scored by {scorer} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in rows["group"].unique(maintain_order=True):
        cells = []
        for dataset, label, _ in sets.rows():
            part = rows.filter((pl.col("group") == name) & (pl.col("dataset") == dataset) & (pl.col("label") == label))
            cells.append(cell(part))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(part):
    if part.is_empty():
        return "–"
    rates, broken = part["rate"] * 100, part["broken"].sum() / part["n"].sum() * 100
    if part.height > 1:
        return f"{rates.median():.1f} ({rates.min():.1f} to {rates.max():.1f}, {part.height} directions); broken {broken:.1f}"
    row = part.row(0, named=True)
    text = f"{100 * row['rate']:.1f}"
    if row["delta"] is not None:
        text += f" (Δ {100 * row['delta']:+.1f}, {100 * row['delta_low']:+.1f} to {100 * row['delta_high']:+.1f})"
    return f"{text}; broken {broken:.1f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--mirror", type=Path)
    parser.add_argument("--model", default="refusal-smollm2")
    parser.add_argument("--method", default="contrastive")
    parser.add_argument("--max-new-tokens", default=16)
    parser.add_argument("--layers", default="13,15,17,19")
    parser.add_argument("--controls", type=int, default=120, help="harmful, and benign, rows that the controls answer")
    given = parser.parse_args()
    shared = ["--run", given.run, "--model", given.model]
    mirror = ["--data-mirror", given.mirror] if given.mirror else []
    cli(*shared, "extract", "vectors", "--method", given.method, "probe", "--fit", "mass-mean", "--layer", "auto",
        "sweep", "--layers", given.layers)  # fmt: skip
    chosen = setting(given.run)
    print("setting:", chosen)
    sets = ["embedded"]
    if given.mirror:
        sets = ["coconot:original/test", "coconot:contrast", "xstest/safe"]
    data = [word for name in sets for word in ("--data", name)]
    answer(given, [*shared, *mirror], data, trade_off(chosen))
    few = sample(sets, given.mirror, given.run / "controls.jsonl", given.controls)
    beside = given.run.with_name(given.run.name + "-controls")
    shutil.copytree(
        given.run, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.journal", "generations*", ".lock")
    )
    given.run, shared[1] = beside, beside
    answer(given, shared, ["--data", few], controls(chosen))


def answer(given, shared, data, arms):
    words = [word for arm in arms for word in ("--arm", arm)]
    cli(*shared, "generate", *data, *words, "--max-new-tokens", given.max_new_tokens, "evaluate", "report")
    for scorer in ("classifier", "token", "phrases"):
        print("\n" + table(given.run, scorer), flush=True)


def sample(sets, mirror, path, each):
    """As many harmful as benign test rows, drawn with a seed, as a file."""
    rows = load_all([f"{name}/test" if name == "embedded" else name for name in sets], mirror)
    parts = [rows.filter(label=label) for label in ("harmful", "benign")]
    drawn = pl.concat(part.sample(min(each, part.height), seed=0) for part in parts)
    drawn.select(pl.format("{}/{}", "dataset", "id").alias("id"), "prompt", "category", "label").write_ndjson(path)
    return path


if __name__ == "__main__":
    main()
