"""`trace`: prompts unsteered and steered, side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from commands.framework.answers import Adding, Ready
from commands.framework.app import Session, command
from commands.framework.arms import need_tools, refuse_idle, single_arm
from commands.framework.artefacts import TRACES, VECTORS, need
from commands.framework.options import DATA, FOLLOW, NEW_TOKENS, PROMPT, REPLACE, STEERING, STRENGTH, TEST
from commands.framework.output import Summary, warn
from commands.framework.prompts import prompts_of
from commands.framework.settings import Settings
from commands.framework.types import ANY_COUNT, NUMBERS
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from data.store.journal import Journal
    from interventions.steering.arms import Arm


TRACED_AT_MOST = 20
STRENGTHS = STRENGTH.but(help="How much of it; several, such as -0.2,-0.4, trace each arm at each.", type=NUMBERS,
                         default=(STRENGTH.default,), shown=f"{STRENGTH.default:g}")  # fmt: skip


@command(
    *(STRENGTHS if option is STRENGTH else option for option in STEERING),
    NEW_TOKENS.but(help="Also generate so many.", type=ANY_COUNT, default=0), FOLLOW, PROMPT, REPLACE,
    DATA.but(default=None, shown=PROMPT.shown), TEST,
)  # fmt: skip
def trace(session: Session, s: Settings) -> Summary:
    """Look at prompts unsteered and steered, side by side; earlier traces stay."""
    import polars as pl

    from interventions.steering.trace import trace as run_trace

    prompts = traced_prompts(s)
    steering, record = need(session, s, VECTORS)
    if s.given("data") is not None:
        prompts = traced_prompts(s)  # in the splits that making the vectors put them into
    model = session.model(s, record)
    default = single_arm(s.with_values(strength=s.get("strength")[0]), model, steering)
    arms = traced_arms(s, default)
    refuse_idle(arms)
    tools, rests_on = need_tools(session, s, arms, steering, record)
    tokens, path = s.get("max_new_tokens"), TRACES.path(s.run)

    def make(some: pl.DataFrame, of: "list[Arm]") -> "tuple[pl.DataFrame, Journal]":
        return run_trace(model, some, tools, s.run, arms=of, max_new_tokens=tokens, batch_tokens=s.get("batch_tokens"))

    ready = Ready(model, tools, arms, rests_on, tokens, s.get("seed"))
    fits = pl.lit(True) if not tokens else pl.col("max_new_tokens") == tokens
    table = Adding(s, TRACES, ready, prompts, s.get("data") or (), fits).run(make)
    shown = trace_table(table)
    told: Summary = {}
    if (
        not s.get("as_json") and "rendered" in shown.columns
    ):  # a format puts the same around all of them: one is enough to see
        told = {"the model reads the first as": repr(shown["rendered"][0])}
        shown = shown.drop("rendered")
    return {"prompts": prompts.height, **told, "table": shown, "wrote": str(path)}


def traced_arms(s: Settings, default: "Arm") -> "list[Arm]":
    """Each arm at each strength of --strength that leaves it open; without --arm the fixed one."""
    from dataclasses import replace

    from interventions.steering.arms import parse_arms, together

    words = [word for word in s.get("arm") or ("fixed",) if word.partition(":")[0] != "baseline"]
    if not words:
        raise UserError("trace shows the unsteered model beside steered arms: pass --arm fixed or another")
    every = [arm for strength in s.get("strength") for arm in parse_arms(words, replace(default, strength=strength))]
    return together(every)


def trace_table(table: "pl.DataFrame") -> "pl.DataFrame":
    """One line a prompt and arm: divergence, most probable next token without and with steering, and the prompt as it is read."""
    import polars as pl

    def best(column: str) -> list[str]:
        pairs = [(row[0]["token"], row[0]["probability"]) for row in table[column]]
        return ["–" if share is None else f"{token!r} {share:.2f}" for token, share in pairs]

    shown: Summary = {"prompt": table["prompt"]}
    if table["arm"].n_unique() > 1:
        shown["arm"] = table["arm"]
    shown |= {"KL": table["kl"].round(4), "next": best("top_unsteered"), "next, steered": best("top_steered")}
    if table["text_unsteered"].drop_nulls().len():
        shown |= {"text": table["text_unsteered"], "text, steered": table["text_steered"]}
    if "rendered" in table.columns:
        shown["rendered"] = table["rendered"]
    number = {prompt: at for at, prompt in enumerate(table["prompt"].unique(maintain_order=True))}
    return pl.DataFrame(shown).sort(pl.col("prompt").replace_strict(number, return_dtype=pl.Int64), maintain_order=True)


def traced_prompts(s: Settings) -> "pl.DataFrame":
    """The prompts of --prompt, else of --data, else embedded examples: two a category, one of them a near-miss."""
    import polars as pl

    from data import PROMPT_COLUMNS, for_split, load_all

    texts = s.get("prompt")
    if texts:
        if any(not text.strip() for text in texts):
            raise UserError("--prompt is empty; pass a text")
        rows = [{"id": number, "prompt": text, "dataset": "prompt"} for number, text in numbered(s, texts).items()]
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


def numbered(s: Settings, texts: Sequence[str]) -> dict[str, str]:
    """An id for each text of --prompt: the one it was traced with, else the next."""
    path = TRACES.path(s.run)
    known: dict[str, str] = {}
    if path.exists():
        TRACES.check(s.run, own=True)
        known = dict(TRACES.load(path).filter(dataset="prompt").select("prompt", "id").iter_rows())
    ids: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        known.setdefault(text, str(len(known)))
        ids[known[text]] = text
    return ids
