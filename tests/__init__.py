"""Tests mirror the project's folders; `oracles` says what is right, `made` makes models and data, `faults` break things."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
