"""Figures of the papers that this tool reproduces, to stand beside a run's own.

*What Do Refusal Tokens Learn?* (NeurIPS 2025 MechInterp workshop) and its follow-up (arXiv 2603.13359): refusal of
Refuse-Llama (Llama-3 8B with refusal tokens) steered at layer 18, −6 on prompts that its probe calls benign and +4 on
the others. Low rates are better on `benign` prompts (over-refusal), high ones on `harmful`.
"""

from typing import NamedTuple

from data.contract import POOLED

MODEL = "tomg-group-umd/zephyr-llama3-8b-sft-refusal-n-contrast-multiple-tokens"
LAYER, STRENGTH_BENIGN, STRENGTH_HARMFUL = 18, -6.0, 4.0
ARMS = ("base", "categorical", "low-rank")


class Published(NamedTuple):
    """Published rates of one data set and label."""

    title: str  # the data set's name in the papers
    source: str  # as `--data` takes it, or `(pooled)` over the prompts of all sets of one label
    label: str
    n: int  # prompts
    percents: tuple[float, float, float]  # of them refused, to two places, in each of `ARMS`

    def refused(self, arm: str) -> int:
        """How many prompts that is."""
        return round(self.n * self.percents[ARMS.index(arm)] / 100)


PUBLISHED = tuple(
    Published(*figure)
    for figure in (
        ("CoCoNot contrast", "coconot:contrast/test", "benign", 379, (11.87, 1.58, 7.12)),
        ("WildGuard", "wildguard:test/benign", "benign", 945, (9.52, 1.06, 3.81)),
        ("WildJailbreak", "wildjailbreak/benign", "benign", 210, (4.76, 1.43, 3.33)),
        ("OR-Bench-Hard", "or-bench:hard-1k", "benign", 1319, (23.88, 5.84, 12.89)),
        ("XSTest safe", "xstest/safe", "benign", 250, (28.00, 3.60, 5.20)),
        ("pooled", POOLED, "benign", 3103, (17.08, 3.38, 8.15)),
        ("CoCoNot", "coconot:original/test", "harmful", 1001, (94.01, 96.10, 95.10)),
        ("WildGuard", "wildguard:test/harmful", "harmful", 754, (59.02, 77.19, 73.87)),
        ("WildJailbreak", "wildjailbreak/harmful", "harmful", 2000, (20.50, 44.60, 49.10)),
        ("OR-Bench-Toxic", "or-bench:toxic", "harmful", 655, (85.95, 94.66, 94.50)),
        ("XSTest unsafe", "xstest/unsafe", "harmful", 200, (94.50, 99.00, 97.00)),
        ("SORRY-Bench", "sorry-bench", "harmful", 440, (84.77, 93.64, 93.18)),
        ("AdvBench", "advbench", "harmful", 520, (94.23, 99.23, 99.42)),
        ("HarmfulQA", "harmfulqa", "harmful", 1960, (66.07, 85.31, 75.87)),
        ("Do-Not-Answer", "do-not-answer", "harmful", 939, (87.01, 92.55, 95.21)),
        ("pooled", POOLED, "harmful", 8469, (65.21, 79.38, 78.07)),
    )
)
