"""Which token comes next: the most probable one, or one that is drawn."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence

import torch

from interventions.steering.live.asked import Row, Token


def chosen(logits: torch.Tensor, rows: Sequence[Row], projections: torch.Tensor | None = None) -> list[Token]:
    """The next token of each row.

    Args:
        logits: (rows, vocabulary) float32.
        rows: Whose they are.
        projections: (rows, layers, categories), of the position that each is chosen at.
    """
    shaped = followed(logits, rows)
    greedy = shaped.argmax(-1).tolist()
    found: list[Token] = []
    for at, row in enumerate(rows):
        asked = row.asked
        number = greedy[at] if asked.sampling.temperature == 0 else drawn(shaped[at], row)
        shadow = projections[at].tolist() if projections is not None and asked.projects else None
        if asked.top is None:
            found.append(Token(number, projections=shadow))
            continue
        shares = logits[at].log_softmax(-1)
        best = shares.topk(min(asked.top, len(shares)))
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        found.append(Token(number, float(shares[number]), top, shadow))
    return found


def followed(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Logits as a generation_config that is followed makes them, row by row."""
    if not any(row.rules for row in rows):
        return logits
    shaped = logits.clone()
    for at, row in enumerate(rows):
        if row.rules:
            ids = torch.tensor([[*row.asked.ids, *row.made]], device=logits.device)
            shaped[at] = row.rules(ids, logits[at : at + 1].clone())[0]  # type: ignore[arg-type]
    return shaped


def drawn(logits: torch.Tensor, row: Row) -> int:
    """A token drawn by temperature and top-p (nucleus sampling, arXiv 1904.09751 §3.1)."""
    how = row.asked.sampling
    shares = (logits.double().cpu() / how.temperature).softmax(-1)
    if how.top_p < 1:
        ordered, order = shares.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        shares = torch.zeros_like(shares).scatter(0, order, ordered * (before < how.top_p))
    return int(torch.multinomial(shares, 1, generator=row.draws))
