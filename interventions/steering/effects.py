"""What steering does to text that it should leave alone: divergence and broken answers on harmless prompts, perplexity.

The unsteered model answers each prompt greedily, and every arm then reads that same answer: KL(unsteered ‖ arm) of its
first token, and over its tokens. Each arm also gives its own answer, which whoever calls judges broken or not. Plain
text has no prompt: a passage's first tokens stand for it, and the rest is scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data import fingerprint
from data.contract import MAX_NEW_TOKENS
from data.store.journal import Journal
from data.store.measured import Measured
from data.store.tables import write_table
from interventions.backends.batches import run_batches
from interventions.model.control_tokens import refusal_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import Encoded
from interventions.reading.batches import pad_batch, pad_id, plan_batches
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.steering.answer import Gating
from interventions.steering.arms import Arm, baseline
from interventions.steering.batches import answer_rows, variants_of, weights_of
from interventions.steering.plans import Plan, Tools, made_from, plan_arm
from interventions.steering.teacher_forcing import most_rows, teacher_forced
from interventions.steering.texts import judged, stop_tokens
from interventions.traced.gating import Gate

CONTEXT, PIECE = 16, 256  # tokens of a passage that stand for a prompt; tokens of a piece: longer passages are cut
HARMLESS = {"category": None, "label": "benign"}
Variants = list[tuple[Encoded, list[Plan]]]


def side_effects(
    model: Model,
    prompts: pl.DataFrame,
    texts: Sequence[str],
    tools: Tools,
    path: Path,
    *,
    arms: Sequence[Arm],
    broken: Callable[[Sequence[str]], Sequence[bool]],
    figures: Callable[[Measured], pl.DataFrame],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_tokens: int | None = None,
) -> pl.DataFrame:
    """Measure the unsteered model and every arm, and write the table; a killed run's finished batches are kept.

    It has as many parameters as the command of this name has options: each is one of them, by its own name.

    Args:
        model: An open model.
        prompts: Harmless rows in the shape of `data.load_all`; no arm but `oracle` reads their category or label.
        texts: Passages of plain text.
        tools: What the arms draw on.
        path: The parquet file to write, in the columns of `data.store.tables.EFFECTS`.
        arms: What to measure; the baseline always is, and stands first.
        broken: Of texts, whether each is no answer.
        figures: Makes the table of what was measured.
        max_new_tokens: Tokens an answer, and at most so many of the unsteered one that divergence is taken over.
        batch_tokens: Padded tokens a batch, default 2048, on a GPU as many as its memory holds.

    Raises:
        UserError: The tools don't fit the model, or an arm asks for what isn't there.
    """
    tools.check(model)
    arms = [baseline(arms[0].layer), *(arm for arm in arms if not arm.is_baseline)]
    work = _Work(model, tools, arms, path, batch_tokens or default_batch_tokens(model))
    answers, answers_journal = work.answers(prompts, max_new_tokens, broken)
    pieces, pieces_journal = work.pieces(texts)
    measured = Measured([arm.name for arm in arms], max_new_tokens, **answers, **pieces)
    table = figures(measured)
    write_table(path, table)
    for journal in (answers_journal, pieces_journal):
        journal.remove()
    return table


def pieces_of(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Token ids of the passages, long ones in several pieces, and the passage each piece is of.

    Every piece opens as the tokenizer opens any text, with a BOS or not; one too short to be scored is left out.
    """
    opening = tokenizer("")["input_ids"]
    pieces, passage = [], []
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = PIECE - len(opening)
        for at in range(0, len(ids), room):
            piece = opening + ids[at : at + room]
            if len(piece) > CONTEXT:
                pieces.append(piece)
                passage.append(number)
    return pieces, passage


@dataclass(frozen=True)
class _Work:
    """Batches of rows through all arms, journaled."""

    model: Model
    tools: Tools
    arms: list[Arm]
    path: Path
    batch_tokens: int

    def answers(
        self, prompts: pl.DataFrame, tokens: int, broken: Callable[[Sequence[str]], Sequence[bool]]
    ) -> tuple[dict[str, np.ndarray], Journal]:
        """`first`, `answer` and `broken` of `Measured`."""
        model = self.model
        own = prompts.select("category", "label").to_dicts()
        plans = self._plans(own)
        variants = variants_of(model, prompts["prompt"].to_list(), plans, tokens)
        gates = self.tools.shipped(model, plans, prompts.to_dicts())
        journal = self._journal("answers", variants, [tokens] * prompts.height, fingerprint(prompts))

        def measure(rows: list[int]) -> list[Any]:
            done = [answer_rows(model, encoded, rows, plans, gates, tokens, budget=Budget(DECODED * self.batch_tokens))
                    for encoded, plans in variants]  # fmt: skip
            answers = np.concatenate([found.tokens.numpy() for found in done], axis=1).tolist()
            given = [upto_stop(model, row[0]) for row in answers]
            kl = forced_variants(model, variants, rows, given, "kl", gates)
            means = kl.sum(-1) / np.array([len(row) for row in given])[:, None]
            verdicts = judged(model, answers, tokens, broken)
            return np.stack([kl[..., 0], means, np.array(verdicts, float)], axis=-1).tolist()

        noted = self._run(journal, measure, "effects", 3)
        return {"first": noted[..., 0], "answer": noted[..., 1], "broken": noted[..., 2] > 0}, journal

    def pieces(self, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], Journal]:
        """`nll`, `tokens` and `passage` of `Measured`."""
        tokenizer = self.model.tokenizer
        pieces, passage = pieces_of(tokenizer, texts)
        variants: Variants = []
        plans = self._plans([HARMLESS] * len(pieces))
        opened = [HARMLESS | {"prompt": tokenizer.decode(ids[:CONTEXT], skip_special_tokens=True)} for ids in pieces]
        gates = self.tools.shipped(self.model, plans, opened)
        for plan in plans:
            if plan.arm.does.instructs or not variants:
                contexts = [led(tokenizer, plan.arm.text, ids[:CONTEXT]) for ids in pieces]
                variants.append((Encoded(contexts, [(1, len(ids)) for ids in contexts]), []))
            variants[-1 if plan.arm.does.instructs else 0][1].append(plan)
        counts = [len(ids) - CONTEXT for ids in pieces]
        journal = self._journal("texts", variants, counts, sha256("\n\n".join(texts).encode()).hexdigest())

        def measure(rows: list[int]) -> list[Any]:
            nll = forced_variants(self.model, variants, rows, [pieces[row][CONTEXT:] for row in rows], "nll", gates)
            return nll.sum(-1)[..., None].tolist()

        noted = self._run(journal, measure, "effects, text", 1)
        return {"nll": noted[..., 0], "tokens": np.array(counts), "passage": np.array(passage)}, journal

    def _plans(self, rows: Sequence[dict[str, Any]]) -> list[Plan]:
        return [plan_arm(self.model, arm, self.tools, rows) for arm in self.arms]

    def _journal(self, name: str, variants: Variants, given: Sequence[int], data: str) -> Journal:
        model, plans = self.model, [plan for _, plans in variants for plan in plans]
        key = made_from(model, data, plans, self.tools) | {"tokens": max(given, default=0)}
        contexts = zip(*(encoded.ids for encoded, _ in variants), strict=True)
        lengths = [max(map(len, ids)) + tokens for ids, tokens in zip(contexts, given, strict=True)]
        plan = plan_batches(lengths, self.batch_tokens, most_rows(model, max(given, default=1)))
        return Journal(self.path.parent / f".{self.path.stem}-{name}.journal", key, plan)

    def _run(self, journal: Journal, measure: Callable[[list[int]], list[Any]], name: str, width: int) -> np.ndarray:
        """What is noted of each row and arm, (rows, arms, width), in the caller's order of both."""
        noted = run_batches(self.model.backend, journal, measure, name)
        found = np.array(noted, float).reshape(len(noted), len(self.arms), width)
        plain_first = sorted(range(len(self.arms)), key=lambda at: self.arms[at].does.instructs)
        return found[:, np.argsort(plain_first)]


def forced_variants(
    model: Model,
    variants: Variants,
    rows: Sequence[int],
    given: Sequence[Sequence[int]],
    what: str,
    gates: Sequence[Gate],
) -> np.ndarray:
    """`nll` or `kl` of each row's given tokens, (rows, arms, tokens); arms in the variants' order."""
    batches, found = [], []
    for encoded, plans in variants:
        batches.append(pad_batch([encoded.ids[row] for row in rows], pad_id(model.tokenizer), model.device))
        shipped = [plan.for_rows(rows) for plan in plans]
        gating = Gating([gate.for_rows(rows) for gate in gates], weights_of(encoded, rows, 0, gates))
        found.append(teacher_forced(model, batches[-1], given, shipped, refusal_ids=refusal_tokens(model).ids, gating=gating,
                                    divergence=what == "kl", reference=batches[0] if len(batches) > 1 else None))  # fmt: skip
    return np.concatenate([getattr(part, what).numpy() for part in found], axis=1)


def upto_stop(model: Model, tokens: Sequence[int]) -> list[int]:
    """New tokens up to the first stop token, which is one of them: to stop is predicted too."""
    stops = stop_tokens(model)
    end = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


def led(tokenizer: Any, instruction: str, ids: list[int]) -> list[int]:
    """A passage's first tokens with an instruction before them, behind the BOS if there is one."""
    if not instruction:
        return ids
    opening = len(tokenizer("")["input_ids"])
    return ids[:opening] + tokenizer(f"{instruction}\n\n", add_special_tokens=False)["input_ids"] + ids[opening:]
