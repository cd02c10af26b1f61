"""Examples: training rows as token ids, with what each is to learn, how much it counts, and in which batch it stands.

An answer opens with one control token (arXiv 2412.06748): `[respond]`, or `[category]` where the request should not be
complied with. The loss falls on that token and on the answer's text, never on the prompt.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch

from data.contract import REFUSE, RESPOND
from interventions.model.prompt_format import encode
from interventions.model.vocabulary import ControlToken
from interventions.reading.batches import plan_batches

BUCKET_BATCHES = 12  # a bucket is sorted by length, so little is padded; buckets are drawn anew each epoch
HELD_OUT = 10  # without a validation split, one row in so many


@dataclass(frozen=True)
class Example:
    """One row as a model learns it.

    Attributes:
        ids: Rendered prompt, control token, answer, end of turn.
        opening: Position of the control token in `ids`.
        name: The control token's name.
        row: Which training row it is.
    """

    ids: list[int]
    opening: int
    name: str
    row: int

    @property
    def text(self) -> list[int]:
        """The answer's tokens, end of turn included; none without an answer."""
        return self.ids[self.opening + 1 :]


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right, where causal attention never looks.

    Attributes:
        ids: (rows, tokens).
        at: (targets, 2), row and position that a target token is predicted from.
        targets: (targets,) token ids; the first `rows` of them are the control tokens, in the order of the rows.
    """

    ids: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor


def target_tokens(rows: pl.DataFrame) -> list[str | None]:
    """The control token that each row's answer opens with.

    Benign rows, near-misses with a category among them, open with `respond`; harmful ones with their category, or
    `refuse` if they have none. Rows without a label have no opening.
    """
    return [
        {"benign": RESPOND, "harmful": category or REFUSE}.get(label or "")
        for label, category in rows.select("label", "category").iter_rows()
    ]


def split_rows(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training and validation rows: those of the splits of these names; the test split serves neither.

    Without a validation split a tenth of the training rows, evenly spread over each control token's, is held out.
    """
    train = rows.filter(pl.col("split").is_null() | (pl.col("split") == "train"))
    held = rows.filter(pl.col("split") == "validation")
    if held.height:
        return train, held
    place = train.select(pl.int_range(pl.len()).over(pl.Series("opening", target_tokens(train)))).to_series()
    out = place % HELD_OUT == HELD_OUT - 1
    return train.filter(~out), train.filter(out)


def make_examples(
    tokenizer: Any, control_tokens: Sequence[ControlToken], rows: pl.DataFrame, max_tokens: int
) -> list[Example]:
    """Rows as token ids. Answers are cut at `max_tokens`; rows whose prompt alone is longer are left out.

    Args:
        tokenizer: It holds the control tokens and the chat template.
        control_tokens: The control tokens; rows that open with none of them are left out.
        rows: `data.prompts.answers.TRAINING_COLUMNS`; a row without a response teaches its control token alone.
        max_tokens: At most so many tokens a example.
    """
    ids = {token.name: token.id for token in control_tokens}
    prompts = encode(tokenizer, rows["prompt"].to_list()).ids
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    examples = []
    for at, (prompt, name, answer) in enumerate(zip(prompts, target_tokens(rows), rows["response"], strict=True)):
        if name not in ids or len(prompt) >= max_tokens:
            continue
        text = [*tokenizer(answer, add_special_tokens=False)["input_ids"], *end] if answer else []
        examples.append(Example([*prompt, ids[name], *text][:max_tokens], len(prompt), name, at))
    return examples


def class_weights(names: Sequence[str], balance: float) -> dict[str, float]:
    """Weight of each control token's loss: n_name^−balance, scaled so that the mean over all rows is 1.

    Args:
        names: Control tokens of the training rows.
        balance: 0 counts each row the same, 1 each control token.
    """
    counts = Counter(names)
    total = sum(count * count**-balance for count in counts.values())
    return {name: count**-balance * len(names) / total for name, count in sorted(counts.items())}


def epoch_batches(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches of at most `batch_tokens` padded tokens, in random order; a function of its arguments alone."""
    drawn = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    drawn.shuffle(order)
    mean = max(sum(lengths) / max(len(lengths), 1), 1)
    bucket = max(int(BUCKET_BATCHES * batch_tokens / mean), 1)
    batches = []
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        batches += [[rows[at] for at in batch] for batch in plan_batches([lengths[row] for row in rows], batch_tokens)]
    drawn.shuffle(batches)
    return batches


def collate(examples: Sequence[Example], pad: int, device: torch.device | str) -> Batch:
    """Pad examples to one length and list what is to be predicted, and from where."""
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids + [pad] * (width - len(example.ids)) for example in examples])
    opening = [(row, example.opening - 1) for row, example in enumerate(examples)]
    text = [
        (row, position - 1)
        for row, example in enumerate(examples)
        for position in range(example.opening + 1, len(example.ids))
    ]
    at = torch.tensor(opening + text)
    return Batch(ids.to(device), at.to(device), ids[at[:, 0], at[:, 1] + 1].to(device))
