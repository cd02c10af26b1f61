"""`trace`: prompts unsteered and steered, side by side."""

from typing import TYPE_CHECKING

import click

from commands.framework.app import Session, command
from commands.framework.arms import need_tools, single_arm
from commands.framework.artefacts import TRACES, VECTORS, need
from commands.framework.options import DATA, NEW_TOKENS, PROMPT, STEERING, TEST
from commands.framework.output import Summary, warn
from commands.framework.prompts import fingerprint_of, prompts_of
from commands.framework.records import model_key, note, unchanged
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


TRACED_AT_MOST = 20


@command(
    *STEERING, NEW_TOKENS.but(help="Also generate so many.", type=click.IntRange(min=0), default=0), PROMPT,
    DATA.but(default=None, shown=PROMPT.shown), TEST,
)  # fmt: skip
def trace(session: Session, s: Settings) -> Summary:
    """Look at prompts unsteered and steered, side by side."""
    from data.store.rundir import now
    from data.store.tables import write_table
    from interventions.steering.trace import trace as run_trace

    start = now()
    prompts = traced_prompts(s)
    steering, record = need(session, s, VECTORS)
    model = session.model(s, record)
    arm = single_arm(s, model, steering)
    tools, rests_on = need_tools(session, s, [arm], steering, record)
    tokens = s.get("max_new_tokens")
    key = model_key(model) | rests_on | {"fingerprint": fingerprint_of(prompts), "arm": arm.record}
    key |= {"max_new_tokens": tokens, "seed": s.get("seed")}
    path = TRACES.path(s.run)
    if unchanged(s, TRACES, key):
        table = TRACES.load(path)
    else:
        table = run_trace(model, prompts, tools, arm, s.run, max_new_tokens=tokens, batch_tokens=s.get("batch_tokens"))
        write_table(path, table)
        note(s, TRACES, key, model, start, data=s.get("data"))
    return {"prompts": table.height, "table": trace_table(table), "wrote": str(path)}


def trace_table(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a prompt: divergence and most probable next token, without and with steering."""
    import polars as pl

    def best(column: str) -> list[str]:
        pairs = [(row[0]["token"], row[0]["probability"]) for row in table[column]]
        return ["–" if share is None else f"{token!r} {share:.2f}" for token, share in pairs]

    shown: Summary = {"prompt": table["prompt"], "KL": table["kl"].round(4), "next": best("top_unsteered")}
    shown["next, steered"] = best("top_steered")
    if table["text_unsteered"].drop_nulls().len():
        shown |= {"text": table["text_unsteered"], "text, steered": table["text_steered"]}
    return pl.DataFrame(shown)


def traced_prompts(s: Settings) -> "pl.DataFrame":
    """The prompts of --prompt, else of --data, else embedded examples: two a category, one of them a near-miss."""
    import polars as pl

    from data import PROMPT_COLUMNS, for_split, load_all

    texts = s.get("prompt")
    if texts:
        if any(not text.strip() for text in texts):
            raise UserError("--prompt is empty; pass a text")
        rows = [{"id": str(at), "prompt": text, "dataset": "prompt"} for at, text in enumerate(texts)]
        return pl.DataFrame(rows, schema=dict.fromkeys(PROMPT_COLUMNS, pl.String))
    if not s.get("data"):
        examples = for_split(load_all(["embedded"]), s.get("split"))
        return (
            examples.group_by("category", "label", maintain_order=True)
            .head(1)
            .sort("category", "label", nulls_last=True)
            .select(PROMPT_COLUMNS)
            .head(s.get("limit") or TRACED_AT_MOST)
        )
    prompts = prompts_of(s, s.get("split"))
    if prompts.is_empty():
        raise UserError(f"no prompt in split {s.get('split')!r}: pass --split or other --data")
    if prompts.height > TRACED_AT_MOST and s.get("limit") is None:
        warn(f"tracing the first {TRACED_AT_MOST} of {prompts.height} prompts; --limit N traces more")
    return prompts.head(s.get("limit") or TRACED_AT_MOST)
