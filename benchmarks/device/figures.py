"""From turns and arrays to ratios and parity, and a table of them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.device.engines import OUR_VLLM, OURS, PLAIN, PLAIN_VLLM
from benchmarks.device.made import on_gpu
from benchmarks.device.processes import Took
from tests.oracles import divergence

EXACT = "plain transformers, float32"  # the same weights
# Beside what an engine's numbers stand; a plain arm with a gate there is not.
PAIRS = [(OURS, PLAIN), (OUR_VLLM, PLAIN), (OUR_VLLM, OURS), (PLAIN_VLLM, PLAIN), (OUR_VLLM, PLAIN_VLLM)]
PAIRS += [(engine, EXACT) for engine in (PLAIN, OURS, PLAIN_VLLM, OUR_VLLM)]


class Line(NamedTuple):
    """What is timed."""

    engine: str
    work: str
    arm: str = ""  # as the tables call it


def said(line: Line) -> str:
    return ", ".join(part for part in line if part)


def speeds(every: Mapping[Line, Sequence[Took]], prompts: int, new_tokens: int, device: str) -> list[dict[str, Any]]:
    """Each line's median; ratios are medians of those of each round, and on a CPU those of CPU seconds."""

    def cost(took: Took) -> float:
        return took.seconds if on_gpu(device) else took.busy

    def beside(line: Line, other: Line) -> float | None:
        pairs = list(zip(every[line], every.get(other, []), strict=False))
        return statistics.median(cost(there) / cost(here) for here, there in pairs) if pairs else None

    rows = []
    for line, turns in every.items():
        units = prompts * (new_tokens if line.work == "tokens" else 1)
        plain = PLAIN_VLLM if line.engine in (PLAIN_VLLM, OUR_VLLM) and line.work == "tokens" else PLAIN
        arm = "unsteered" if line.arm else ""
        rows.append({
            "engine": line.engine, "work": {"states": "prompts read", "tokens": "tokens"}[line.work], "arm": line.arm,
            "per_second": units / statistics.median(took.seconds for took in turns),
            "per_cpu_second": None if on_gpu(device) else units / statistics.median(took.busy for took in turns),
            "of_plain": beside(line, Line(plain, line.work, arm)),
            "of_plain_transformers": beside(line, Line(PLAIN, line.work, arm)),
            "peak_gb": max(took.memory for took in turns),
            "seconds": [round(took.seconds, 4) for took in turns],
            "cpu_seconds": None if on_gpu(device) else [round(took.busy, 4) for took in turns],
        })  # fmt: skip
    return rows


def parity(found: dict[Line, np.ndarray], dtype: str) -> list[dict[str, Any]]:
    """How near engines are to one another: the prompts that both were given."""
    rows = []
    for here, there in PAIRS:
        states = [found.get(Line(engine, "states")) for engine in (here, there)]
        by_layer = None if states[0] is None or states[1] is None else deviation(*states)
        for arm in ("unsteered", "fixed", "gated, bias"):
            mine, other = (found.get(Line(engine, "tokens", arm)) for engine in (here, there))
            if mine is None or other is None:
                continue
            one, two = (found.get(Line(engine, "first", arm)) for engine in (here, there))
            kl = None if one is None or two is None else divergence(two, one)
            same = mine[: len(other)] == other[: len(mine)]
            own = by_layer if arm == "unsteered" else None
            unsteered = found[Line(here, "tokens", "unsteered")]
            rows.append({
                "engine": here, "beside": there, "arm": arm, "dtype": dtype,
                "equal_tokens": float(same.mean()), "equal_first": float(same[:, 0].mean()),
                "steering_changed": None if arm == "unsteered" else float((mine != unsteered).mean()),
                "residual_by_layer": own, "residual": own and max(own),
                "kl_mean": None if kl is None else float(kl.mean()), "kl_max": None if kl is None else float(kl.max()),
            })  # fmt: skip
    return rows


def deviation(mine: Any, other: Any) -> list[float]:
    """Of each layer, the most of any prompt."""
    many = min(len(mine), len(other))
    mine, other = mine[:many], other[:many]
    gaps = np.linalg.norm(mine - other, axis=-1) / np.linalg.norm(other, axis=-1)
    return [float(gap) for gap in gaps.max(axis=0)]


def table(found: dict[str, Any]) -> str:
    """What is printed."""
    lines = [
        f"{found['shape']}, {found['dtype']}, {found['device']}; {found['prompts']} prompts of {found['prompt_tokens']} tokens, "
        f"{found['new_tokens']} new tokens each; {found['seconds']:.0f} s",
        "",
        f"{'':44}{'a second':>10}{'a CPU s':>10}{'× plain':>9}{'× plain transformers':>22}{'peak GB':>9}",
    ]
    for row in found["speed"]:
        named = f"{row['work']}: {row['engine']}" + (f", {row['arm']}" if row["arm"] else "")
        lines.append(
            f"{named:44}{shown(row['per_second'], ',.0f'):>10}{shown(row['per_cpu_second'], ',.0f'):>10}{shown(row['of_plain'], '.2f'):>9}"
            f"{shown(row['of_plain_transformers'], '.2f'):>22}{row['peak_gb']:>9.2f}"
        )
    lines += ["", f"{'':72}{'equal':>8}{'first':>8}{'changed':>9}{'residual':>10}{'KL mean':>10}{'KL max':>10}"]
    for row in found["parity"]:
        named = f"{row['dtype']}: {row['engine']} | {row['beside']}; {row['arm']}"
        lines.append(
            f"{named:72}{row['equal_tokens']:>8.1%}{row['equal_first']:>8.1%}{shown(row['steering_changed'], '.1%'):>9}"
            + "".join(f"{shown(row[name], '.1e'):>10}" for name in ("residual", "kl_mean", "kl_max"))
        )
    return "\n".join([*lines, "", *(f"left out: {what}" for what in found["left_out"])]).rstrip()


def shown(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)
