"""How much a gate gains by prompts like those it will see: fitted to our own and half of the public sets, tried on the other half.

Run: .venv/bin/python benchmarks/halves.py RUN AWAY TOWARDS --mirror DIR

- RUN holds `activations/gate.safetensors` (probe --gate network) and scored answers of the public sets by three arms: `baseline`,
  AWAY, which steers every prompt away from refusal (routed:strength=-0.3,bias=8), and TOWARDS it (routed:strength=0.2,bias=-5.4).
- The halves are whole themes (XSTest's types, CoCoNot's subcategories), drawn by a seed. Each half is fitted on once, with all
  rows of ours, and its thresholds are chosen on scores out of fold: the lower by `keep_refusal`, the upper so that 5 % of the benign
  rows reach it. The other half is then answered: steered away below the lower, towards from the upper on, unsteered between them.
- Beside it the gate that is fitted to our rows alone, a bag of words on the same rows, and the rows' own labels.

The table is Markdown on stdout: percent, and the paired difference to the unsteered answers with Newcombe's 95 % interval.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from data import known_themes, load_all
from data.contract import GATE_KEPT, TUNED_MODEL
from data.store.activations import Activations
from interventions import open_model
from interventions.gates.carry_over import fit_words
from interventions.gates.combination import out_of_fold
from interventions.gates.features import Features
from interventions.gates.kinds import network
from interventions.gates.threshold import keep_refusal
from interventions.model.control_tokens import refusal_tokens
from interventions.reading.extract import JOIN, extract
from reports.statistics.summary import newcombe

SETS = ("coconot:original/test", "coconot:contrast", "xstest")
SHOWN = {
    "all": ("coconot:original", "coconot:contrast", "xstest"),
    "CoCoNot": ("coconot:original", "coconot:contrast"),
    "XSTest": ("xstest",),
}
KEY = ["dataset", "id"]
PASSED = 0.05  # of benign rows that may be steered towards refusal


class Stacked:
    """Activations at one position of several files, one after another."""

    def __init__(self, files, position):
        self.files, self.position = files, position

    def layer(self, number, rows):
        each = len(self.position_names(self.files[0]))
        whole = [file.layer(number)[self.position_names(file).index(self.position) :: each] for file in self.files]
        return np.concatenate(whole)[rows]

    @staticmethod
    def position_names(file):
        return file.metadata["position"].split(JOIN)


def declined(model, last):
    """Whether the model opens its answer with a refusal token, by the last block's output at the last prompt token."""
    names, found = torch.tensor(refusal_tokens(model).ids), []
    with torch.no_grad():
        for part in torch.from_numpy(last).split(256):
            logits = model.module.lm_head(model.module.model.norm(part.to(model.module.dtype)))
            found.append(torch.isin(logits.argmax(-1).cpu(), names))
    return torch.cat(found).numpy()


def decisions(features, fit, rows, harmful, refused, themes, keep):
    """A gate's decisions on every row, fitted to some of them: (rows,) the answer's place, 0 unsteered, 1 away, 2 towards."""
    names = [themes[row] for row in rows]
    score = out_of_fold(features, rows, harmful[rows], names, fit)
    least = keep_refusal(score, harmful[rows], refused[rows], keep).threshold
    assert least is not None, "no threshold keeps so much"
    most = max(np.quantile(score[~harmful[rows]], 1 - PASSED), least)
    gate = fit(features, rows, harmful[rows], names)
    found = features.score(gate, np.arange(len(harmful)))
    return np.where(found < np.float32(least), 1, np.where(found >= np.float32(most), 2, 0))


def line(name, before, after, harmful, among):
    cells = []
    for group in (~harmful & among, harmful & among):
        was, now, n = before[group], after[group], int(group.sum())
        both, gained, lost = (int(part.sum()) for part in (was & now, now & ~was, was & ~now))
        delta, low, high = (100 * part for part in newcombe(both, gained, lost, n - both - gained - lost))
        cells.append(
            f"{100 * was.mean():.1f} → {100 * now.mean():.1f} (Δ {delta:+.1f}, {low:+.1f} to {high:+.1f}; n = {n})"
        )
    return f"| {name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("away")
    parser.add_argument("towards")
    parser.add_argument("--mirror", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=float, default=GATE_KEPT, help="share of the refusals that the lower threshold keeps"
    )
    parser.add_argument("--scorer", default="classifier")
    given = parser.parse_args()

    model, own = open_model(TUNED_MODEL), Activations.open(given.run / "activations/gate.safetensors")
    public = load_all(SETS, given.mirror)
    path = given.run / "halves" / "public.safetensors"
    if not path.exists():
        extract(model, public, path.parent, layers=own.layers, position=own.metadata["position"], name=path.stem)
    files, each = [own, Activations.open(path)], len(Stacked.position_names(own))
    frame = pl.concat([file.rows[::each].select(public.columns) for file in files])
    themes = known_themes(frame.select(*KEY, "prompt"), given.mirror).table["theme"]
    themes = themes.fill_null(frame.select(pl.format("{} {}", *KEY)).to_series()).to_list()
    stacked: Any = {name: Stacked(files, name) for name in Stacked.position_names(own)}
    features = Features(frame["prompt"].to_list(), model.n_layers, stacked, categories=frame["category"].to_list())
    harmful = (frame["label"] == "harmful").to_numpy()
    mine = np.arange(frame.height) < frame.height - public.height
    refused = declined(model, features.files["last"].layer(model.n_layers - 1, np.arange(frame.height)))

    names = sorted({theme for theme, ours in zip(themes, mine, strict=True) if not ours})
    first = set(np.random.default_rng(given.seed).permutation(names)[: len(names) // 2].tolist())
    half = np.array([theme in first for theme in themes])
    print(
        f"{len(first)} of {len(names)} themes, {int((half & ~mine).sum())} of {public.height} rows, are the first half"
    )

    steers = {
        name: np.zeros(frame.height, int) for name in ("ours alone", "ours and the other half", "words, the same rows")
    }
    fits = {"ours and the other half": network.KIND.fit, "words, the same rows": fit_words}
    steers["ours alone"] = decisions(
        features, network.KIND.fit, np.flatnonzero(mine), harmful, refused, themes, given.keep
    )
    for fitted_on in (half, ~half):
        rows, rest = np.flatnonzero(mine | fitted_on), ~fitted_on & ~mine
        for name, fit in fits.items():
            steers[name][rest] = decisions(features, fit, rows, harmful, refused, themes, given.keep)[rest]
    steers["a perfect gate"] = np.where(harmful, 0, 1)

    scores = pl.read_parquet(given.run / "scores.parquet").filter(scorer=given.scorer)
    answers = [frame[mine.sum() :].join(scores.filter(arm=arm).select(*KEY, "refused"), on=KEY, how="left", maintain_order="left")
               ["refused"].to_numpy().astype(bool) for arm in ("baseline", given.away, given.towards)]  # fmt: skip
    harmful, half = harmful[~mine], half[~mine]
    for title, sets in SHOWN.items():
        print(f"\n| {title} | over-refusal | refusal |\n|---|---|---|")
        shown = public["dataset"].is_in(sets).to_numpy()
        for name, decided in steers.items():
            after = np.choose(decided[~mine], answers)
            print(line(name, answers[0], after, harmful, shown))
            if name in fits:
                for which, part in (("first", half), ("second", ~half)):
                    print(line(f"{name}, {which} half", answers[0], after, harmful, shown & part))


if __name__ == "__main__":
    main()
