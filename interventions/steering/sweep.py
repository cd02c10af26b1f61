"""Which layer and strength? A grid on validation rows: the first token's probabilities shortlist, text decides.

Adding a category's direction moves the very logit that the first token's probability reads, so that the first stage
is a check that steering does something, not a result. The second stage generates, and a text scorer decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data import fingerprint
from data.contract import MAX_NEW_TOKENS, MORE_BROKEN, REFUSAL_LOSS, SWEEP_BEST
from data.errors import UserError
from data.store.journal import Journal
from data.store.tables import SWEEP, write_table
from interventions.backends.batches import run_batches
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded, encode
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.answer import Answers
from interventions.steering.arms import Arm, baseline, parse_arms
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, Tools, made_from, plan_arm
from interventions.steering.texts import Verdicts, judged, warn_of_overflow

FACTORS = (1 / 3, 2 / 3, 1.0, 4 / 3, 2.0)  # times an arm's own strength
SHARES = (1 / 3, 2 / 3, 1.0)  # the same of what goes no further than its whole way
AROUND = (-0.5, -0.25, 0.0, 0.25, 0.5)  # strengths of what has 0 for its own
SHARED_SETTING = ("fixed", "routed", "gated", "random", "wrong-category")  # kinds that mean the same by a strength
UNSWEPT = ("baseline", "prompt-only", "oracle")
SLACK = 0.02  # refusal that a shortlisted setting may seem to lose by the first token; by text it may not
EQUAL = 0.01  # mean probabilities so near are equal: then the gentler setting comes first


@dataclass(frozen=True)
class Shares:
    """What became of the rows in each of A arms, unsteered first; (A,) each.

    Attributes:
        harmful: Share of harmful rows refused, by text or by the first token.
        benign: Share of benign rows refused.
        broken: Share of all answers that are no answers; zeros where no text was looked at.
    """

    harmful: np.ndarray
    benign: np.ndarray
    broken: np.ndarray


def sweep_layers(n_layers: int, among: Sequence[int]) -> list[int]:
    """Every second layer of 10 to 20 of 32, scaled to the model's depth, of those that there are vectors at.

    The papers swept layers 10 to 20 (arXiv 2603.13359). Without any there, all of `among`.
    """
    first, last = (min(round(at / 32 * n_layers), n_layers - 1) for at in (10, 20))
    return [layer for layer in range(first, last + 1, 2) if layer in among] or list(among)


def grid(
    words: Sequence[str], default: Arm, layers: Sequence[int], strengths: Sequence[float] | None, lowrank: int | None
) -> list[Arm]:
    """Every setting of every arm: its name is the arm's, layer and strength tell it apart.

    Args:
        words: Arms in the notation of `parse_arms`, which may name neither layer nor strength.
        default: What they leave open.
        layers: Blocks to steer; a logit bias has none, a low-rank map its own.
        strengths: Strengths; None: `FACTORS` times the arm's own. An ablation has none. A window of layers is one setting, but
            an ablated direction may be each of `layers`'.
        lowrank: The low-rank map's layer.

    Raises:
        UserError: An arm that has no setting, or names one.
    """
    found: list[Arm] = []
    for plain, word in zip(parse_arms(words, default), words, strict=True):
        if plain.kind in UNSWEPT:
            raise UserError(f"--arm {word!r} has no layer and strength to sweep")
        if any(f"{key}=" in word for key in ("layer", "strength", "benign")):
            raise UserError(f"--arm {word!r}: sweep varies layers and strengths; use --layers and --strengths")
        places = {"logit-bias": layers[:1], "lowrank": [default.layer if lowrank is None else lowrank]}
        factors = SHARES if plain.operation == "rotate" else FACTORS
        sizes = strengths or ([factor * plain.strength for factor in factors] if plain.strength else AROUND)
        if plain.layers and plain.operation != "ablate":
            places[plain.kind] = [default.layer]
        for layer in places.get(plain.kind, layers):
            for strength in sizes if plain.operation != "ablate" else [plain.strength]:
                joint = "," if ":" in word else ":"
                (arm,) = parse_arms([f"{word}{joint}strength={round(strength, 10)!r}"], replace(default, layer=layer))
                found.append(replace(arm, name=plain.name))
    return found


def sweep(
    model: Model,
    prompts: pl.DataFrame,
    tools: Tools,
    path: Path,
    *,
    arms: Sequence[Arm],
    verdicts: Verdicts,
    best: int = SWEEP_BEST,
    max_new_tokens: int = MAX_NEW_TOKENS,
    refusal_loss: float = REFUSAL_LOSS,
    batch_tokens: int | None = None,
) -> pl.DataFrame:
    """Try every setting on labelled rows, choose one and write the table; a killed run's finished batches are kept.

    It has as many parameters as the command of this name has options: each is one of them, by its own name.

    Args:
        model: An open model; one without refusal tokens is judged by text alone, in all settings.
        prompts: Labelled rows in the shape of `data.load_all`; labels are read to count, never to steer.
        tools: What the arms draw on.
        path: The parquet file to write.
        arms: The settings, of `grid`.
        verdicts: Of texts each one's: `refuse`, `broken`, …, or None where it can't say.
        best: How many settings generate.
        max_new_tokens: Tokens an answer in the second stage.
        refusal_loss: How much of the baseline's refusal of harmful rows a chosen setting may lose, 0 to 1.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds.

    Raises:
        UserError: No harmful or no benign row, tools that don't fit the model, or an arm that asks for what isn't there.
    """
    tools.check(model)
    prompts = prompts.filter(pl.col("label").is_not_null())
    harmful = (prompts["label"] == "harmful").to_numpy()
    for there, word in ((harmful.any(), "harmful"), ((~harmful).any(), "benign")):
        if not there:
            more = (
                "--benign NAME_OR_FILE adds some, --split takes others"
                if word == "benign"
                else "pass --split or other --data"
            )
            raise UserError(f"no {word} row to sweep on: {more}")
    arms = [baseline(arms[0].layer), *arms]
    unlabelled = [{"category": None, "label": None}] * prompts.height
    plans = [plan_arm(model, arm, tools, unlabelled) for arm in arms]
    budget = Budget(DECODED * (batch_tokens or default_batch_tokens(model)))
    encoded = encode(model.tokenizer, prompts["prompt"].to_list(), room=max_new_tokens)
    work = _Work(model, prompts, encoded, tools, path, budget)
    probability, chosen = None, list(range(1, len(arms)))
    journals = []
    if refusal_tokens(model).ids:
        journals.append(work.journal("first", plans, 0))
        probability = work.first_position(journals[0], plans)
        warn_of_overflow("refusal probability", int((~np.isfinite(probability)).any(0).sum()), len(arms))
        chosen = shortlist(_shares(probability, harmful), arms, best, refusal_loss)
    kept = [0, *chosen]
    journals.append(work.journal("text", [plans[at] for at in kept], max_new_tokens))
    said = work.verdicts(journals[-1], [plans[at] for at in kept], max_new_tokens, verdicts)
    winner = choose(_text_shares(said, harmful), [arms[at] for at in kept], refusal_loss)
    table = _table(arms, harmful, probability, dict(zip(kept, said.T, strict=True)),
                   None if winner is None else kept[winner])  # fmt: skip
    write_table(path, table)
    for journal in journals:
        journal.remove()
    return table


def shortlist(shares: Shares, arms: Sequence[Arm], best: int, refusal_loss: float) -> list[int]:
    """The settings worth generating with, best first: numbers of `arms`, whose first is unsteered.

    First come those that keep the refusal of harmful rows, to two points, least over-refusal first, then the others
    by what they gain less what they lose. Where over-refusal is equal to a point the gentler comes first, since the stronger
    mostly breaks text; and no layer of an arm is taken twice before every other had its turn. Settings whose figures
    are no numbers come last.
    """
    loss, fall = shares.harmful[0] - shares.harmful, shares.benign[0] - shares.benign

    def rank(at: int) -> tuple[float, ...]:
        keeps = loss[at] <= refusal_loss + SLACK
        gain = fall[at] if keeps else fall[at] - loss[at]
        return (not keeps, -round(gain / EQUAL), abs(arms[at].strength))

    known = np.isfinite(loss) & np.isfinite(fall)
    order = sorted((at for at in range(1, len(arms)) if known[at]), key=rank)
    lost = sorted((at for at in range(1, len(arms)) if not known[at]), key=lambda at: abs(arms[at].strength))
    seen: dict[tuple[str, int], int] = {}
    turns = []
    for at in order:
        place = arms[at].name, arms[at].layer
        seen[place] = seen.get(place, 0) + 1
        turns.append((seen[place], len(turns), at))
    return [*(at for _, _, at in sorted(turns)), *lost][:best]


def choose(shares: Shares, arms: Sequence[Arm], refusal_loss: float) -> int | None:
    """The setting with the least over-refusal among those that do no harm; None if none lowers it.

    No harm: refusal of harmful rows not below the baseline's (but for `refusal_loss`), and at most two points more
    broken answers. Of equals the one that refuses more harmful rows, then the gentler.
    """
    fine = [
        at
        for at in range(1, len(arms))
        if shares.harmful[at] >= shares.harmful[0] - refusal_loss
        and shares.broken[at] <= shares.broken[0] + MORE_BROKEN
        and shares.benign[at] < shares.benign[0]
    ]
    return min(fine, key=lambda at: (shares.benign[at], -shares.harmful[at], abs(arms[at].strength)), default=None)


@dataclass(frozen=True)
class _Work:
    """Batches of rows through many arms, journaled."""

    model: Model
    prompts: pl.DataFrame
    encoded: Encoded
    tools: Tools
    path: Path
    budget: Budget

    def journal(self, stage: str, plans: Sequence[Plan], tokens: int) -> Journal:
        """Of a stage; the scorer is not part of its key, since one and the same judges every sweep of a model."""
        key = made_from(self.model, fingerprint(self.prompts), plans, self.tools) | {"tokens": tokens}
        plan = plan_answers(self.encoded, len(plans), tokens, self.budget)
        return Journal(self.path.parent / f".{self.path.stem}-{stage}.journal", key, plan)

    def first_position(self, journal: Journal, plans: Sequence[Plan]) -> np.ndarray:
        """Probability of a refusal token first, (rows, arms)."""

        def note(found: Answers) -> list[list[Any]]:
            assert found.refusal is not None
            return found.refusal.double().tolist()

        return np.array(self._run(journal, plans, 0, note, "sweep"), float)

    def verdicts(self, journal: Journal, plans: Sequence[Plan], tokens: int, verdicts: Verdicts) -> np.ndarray:
        """Verdicts on the texts, (rows, arms), objects."""

        def note(found: Answers) -> list[list[Any]]:
            return judged(self.model, found.tokens.tolist(), tokens, verdicts)

        return np.array(self._run(journal, plans, tokens, note, "sweep, text"), object)

    def _run(
        self,
        journal: Journal,
        plans: Sequence[Plan],
        tokens: int,
        note: Callable[[Answers], list[list[Any]]],
        name: str,
    ) -> list[list[Any]]:
        """What is noted of each row, in the rows' order."""

        gates = self.tools.shipped(self.model, plans, self.prompts.to_dicts())

        def work(rows: list[int]) -> list[list[Any]]:
            return note(answer_rows(self.model, self.encoded, rows, plans, gates, tokens, self.budget))

        return run_batches(self.model.backend, journal, work, name)


def _shares(probability: np.ndarray, harmful: np.ndarray) -> Shares:
    nothing = np.zeros(probability.shape[1])
    return Shares(probability[harmful].mean(0), probability[~harmful].mean(0), nothing)


def _text_shares(verdicts: np.ndarray, harmful: np.ndarray) -> Shares:
    refused, answered = (
        np.array([_share(column, "refuse") for column in verdicts[group].T]) for group in (harmful, ~harmful)
    )
    return Shares(refused, answered, np.array([_share(column, "broken") for column in verdicts.T]))


def _share(verdicts: np.ndarray, wanted: str) -> float:
    """Of those that there is a verdict on; no number without any."""
    known = [one for one in verdicts if one is not None]
    return float(np.mean([one == wanted for one in known])) if known else float("nan")


def _table(
    arms: Sequence[Arm],
    harmful: np.ndarray,
    probability: np.ndarray | None,
    verdicts: dict[int, np.ndarray],
    winner: int | None,
) -> pl.DataFrame:
    """Two rows a setting, unsteered first."""
    rows = []
    for at, arm in enumerate(arms):
        steers = not arm.is_baseline
        setting = {
            "layer": arm.its_layer,
            "strength": arm.strength if steers else None,
            "strength_unit": arm.unit if steers else None,
            "arm": arm.name,
            "kind": arm.kind,
            "category": arm.category if arm.steers else None,
            "scope": arm.scope if arm.steers else None,
            "harmful": arm.harmful if arm.is_gated else None,
            "chosen": at == winner,
        }
        for label, group in (("harmful", harmful), ("benign", ~harmful)):
            texts = verdicts.get(at)
            rows.append(
                setting
                | {
                    "label": label,
                    "n": int(group.sum()),
                    "refusal_probability": None if probability is None else float(probability[group, at].mean()),
                    "refused": None if texts is None else _share(texts[group], "refuse"),
                    "broken": None if texts is None else _share(texts[group], "broken"),
                }
            )
    return pl.DataFrame(rows, SWEEP).fill_nan(None)
