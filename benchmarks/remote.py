"""Seconds and bytes a prompt on an NDIF server, for an ordinary key and a trusted one, beside this machine alone.

Starts both servers on this machine's CPU (`make ndif` installs one) and takes turns, so that ratios hold on a noisy machine;
what is computed is the same in all three ways, and is held against one another.

    python benchmarks/remote.py [--prompts 32] [--turns 3] [--sums 2000]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from data import load_all
from interventions import extract, open_model
from interventions.backends.backend import open_backend
from interventions.methods.fit import fit_vectors, group_of
from interventions.methods.vectors import SteeringVectors
from interventions.model.model import Model
from interventions.reading.sums import extract_sums
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests.ndif.server import Server

MODEL, LAYER, TOKENS = "refusal-smollm2", 17, 16
WAYS = ("here", "trusted", "sandboxed")
ARMS = ["baseline", "fixed", "routed", "ablate"]
Work = Callable[[Model, pl.DataFrame, Path], object]


@contextmanager
def server(*, sandbox: bool) -> Iterator[str]:
    """The address of an NDIF server of this machine."""
    with tempfile.TemporaryDirectory(prefix="nt-", dir="/tmp") as folder:
        made = Server(Path(folder))
        try:
            yield made.up(sandbox=sandbox)
        finally:
            made.down()


def one_layer(model: Model, prompts: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """`extract` of one layer."""
    return pl.read_parquet(extract(model, prompts, folder, layers=[LAYER]).with_suffix(".parquet"))


def all_layers(model: Model, prompts: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """`extract` of all."""
    return pl.read_parquet(extract(model, prompts, folder).with_suffix(".parquet"))


def vectors(model: Model, prompts: pl.DataFrame, folder: Path) -> SteeringVectors:
    """Mean vectors of all layers: of activations here, of sums on a server."""
    if not model.backend.is_remote:
        return fit_vectors(extract(model, prompts, folder))
    return fit_vectors(extract_sums(model, prompts, folder, lambda rows: group_of(rows, "mean")))


def generating(steering: SteeringVectors) -> Work:
    """`generate` in four arms."""

    def work(model: Model, prompts: pl.DataFrame, folder: Path) -> pl.DataFrame:
        arms = parse_arms(ARMS, Arm("x", "fixed", LAYER, strength=-0.3, unit="residual"))
        return generate(model, prompts, Tools(steering), folder / "g.parquet", arms=arms, max_new_tokens=TOKENS)

    return work


def timed(work: Work, model: Model, prompts: pl.DataFrame) -> tuple[float, dict[str, int], object]:
    """Seconds, what went over the line, and what came of it."""
    before = model.backend.traffic
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = work(model, prompts, Path(folder))
        seconds = time.perf_counter() - start
    return seconds, {name: value - before[name] for name, value in model.backend.traffic.items()}, made


def measure(name: str, work: Work, models: Mapping[str, Model], prompts: pl.DataFrame, turns: int) -> None:
    """A row of the table: milliseconds and KB a prompt of each way, and how many times the trusted way's time a sandbox takes."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    traffic: dict[str, dict[str, int]] = {}
    for turn in range(turns + 1):
        for way in WAYS if turn % 2 else reversed(WAYS):
            took, traffic[way], _ = timed(work, models[way], prompts)
            if turn:  # the first warms up
                seconds[way].append(took)
    each = {way: 1000 * statistics.median(some) / prompts.height for way, some in seconds.items()}
    ratios = [far / near for far, near in zip(seconds["sandboxed"], seconds["trusted"], strict=True)]
    brought = [f"{traffic[way]['received'] / 1000 / prompts.height:.1f}" for way in WAYS[1:]]
    sent = [f"{traffic[way]['sent'] / 1000 / prompts.height:.1f}" for way in WAYS[1:]]
    times = " | ".join(f"{each[way]:.0f}" for way in WAYS)
    print(f"| {name} | {times} | {' / '.join(sent)} | {' / '.join(brought)} | {statistics.median(ratios):.1f} "
          f"({min(ratios):.1f} to {max(ratios):.1f}) |", flush=True)  # fmt: skip


def compare_sums(here: Model, there: Model, rows: int) -> None:
    """Vectors of sums beside those of activations that were read here, over many prompts: how far apart, how many bytes."""
    prompts = load_all(["embedded"]).filter(pl.col("label").is_not_null()).with_columns(split=None).head(rows)
    seconds, traffic, found = timed(vectors, there, prompts)
    _, _, wanted = timed(vectors, here, prompts)
    assert isinstance(wanted, SteeringVectors) and isinstance(found, SteeringVectors)
    apart = max(
        float(((found.tensors[name] - one).norm(dim=-1) / one.norm(dim=-1)).max())
        for name, one in wanted.tensors.items()
    )
    print(f"sums of {prompts.height:,} prompts in {len(wanted.tensors)} categories and {len(wanted.layers)} layers: "
          f"{traffic['received'] / 1e6:.2f} MB in {traffic['jobs']} requests, {seconds:.0f} s; at most {apart:.1e} of a "
          "vector's length from those of activations", flush=True)  # fmt: skip


def main() -> None:
    """Both servers up, all rows, both down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 32), ("turns", 3), ("sums", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    few = load_all(["embedded/test"]).filter(pl.col("category").is_not_null() | (pl.col("label") == "benign"))
    few = few.sample(asked.prompts, seed=0, shuffle=True).with_columns(split=None)
    with server(sandbox=False) as trusted, server(sandbox=True) as sandboxed:
        models = {"here": open_model(MODEL)} | {
            way: open_model(MODEL, remote=open_backend("remote", address, timeout=1800))
            for way, address in (("trusted", trusted), ("sandboxed", sandboxed))
        }
        _, _, steering = timed(vectors, models["here"], few)
        assert isinstance(steering, SteeringVectors)
        print(
            "| | ms a prompt: here | trusted | sandboxed | KB sent | KB brought back | sandboxed : trusted |\n|---|---|---|---|---|---|---|"
        )
        measure("extract, one layer", one_layer, models, few, asked.turns)
        measure("extract, all 30 layers", all_layers, models, few, asked.turns)
        measure("vectors, all 30 layers", vectors, models, few, asked.turns)
        measure(f"generate, {len(ARMS)} arms, {TOKENS} tokens", generating(steering), models, few, asked.turns)
        if asked.sums:
            compare_sums(models["here"], models["trusted"], asked.sums)


if __name__ == "__main__":
    main()
