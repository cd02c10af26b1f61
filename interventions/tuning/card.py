"""The README of an adapter: what it is, how it was made, how to use it, what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

from interventions.model.vocabulary import ControlToken
from interventions.tuning.loop import Epoch

TEXT = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
---
# Refusal tokens for {base}

A LoRA adapter that opens each answer with one special token: `[respond]`, or the reason not to comply
(method: arXiv 2412.06748). It is made to study refusal; it is no safety filter.

| token | id | takes the place of |
|---|---|---|
{tokens}

{rows} rows to learn from, {held} to choose the epoch by; {options}. Kept: epoch {kept}.

| epoch | training loss | token loss | answer loss | right token | refused or complied rightly |
|---|---|---|---|---|---|
{epochs}

Losses in nats; all but the first on the validation rows.

## Use
The control tokens' names are in `control_tokens.json`, the chat template in `chat_template.jinja`.
{growth}
"""
SAME_SIZE = "No layer changes its size: the tokens take unused places of the base's vocabulary, under new names."
LARGER = "Resize the base's token embeddings to {rows} rows before you load the adapter."


def card(
    base: str,
    tokens: Sequence[ControlToken],
    resized: bool,
    epochs: Sequence[Epoch],
    kept: int,
    rows: tuple[int, int],
    options: Mapping[str, Any],
) -> str:
    """The card's text, Markdown.

    Args:
        base: Name of the base model.
        tokens: The control tokens.
        resized: Whether the vocabulary had to grow for them.
        epochs: What each epoch came to.
        kept: Number of the one that was kept.
        rows: How many were learned from, and how many the epoch was chosen by.
        options: How it was trained.
    """
    table = [
        f"| `{token.token}` | {token.id} | {f'`{token.replaces}`' if token.replaces else 'new row'} |"
        for token in tokens
    ]
    figures = [
        f"| {e.number} | {e.train_loss:.3f} | {e.token_loss:.3f} | {e.answer_loss:.3f} "
        f"| {e.category_accuracy:.3f} | {e.refusal_accuracy:.3f} |"
        for e in epochs
    ]
    return TEXT.format(
        base=base,
        tokens="\n".join(table),
        rows=rows[0],
        held=rows[1],
        options=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items()),
        kept=kept,
        epochs="\n".join(figures),
        growth=LARGER.format(rows=max(token.id for token in tokens) + 1) if resized else SAME_SIZE,
    )
