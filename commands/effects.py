"""`effects`: what steering does to harmless prompts and to plain text."""

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from commands.framework.app import Session, command
from commands.framework.arms import chosen_arms
from commands.framework.artefacts import EFFECTS
from commands.framework.options import BENIGN, FOLLOW, NEW_TOKENS, PLAIN_TEXT, STEERING, TEST
from commands.framework.output import Summary, warn
from commands.framework.prompts import check_there, fingerprint_of, prompts_of
from commands.framework.records import answering_key, note, unchanged
from commands.framework.seen import asked_themes, fitted_texts
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    import polars as pl


@command(
    *STEERING, NEW_TOKENS.but(help="Tokens an answer, and of the unsteered answer that every arm reads."),
    FOLLOW, PLAIN_TEXT, BENIGN, TEST,
)  # fmt: skip
def effects(session: Session, s: Settings) -> Summary:
    """Measure what every arm does to harmless prompts and plain text: KL, perplexity, broken answers."""
    from data.prompts.passages import passages
    from data.store.rundir import now
    from interventions.steering.effects import side_effects
    from reports.scoring.broken import are_broken
    from reports.statistics.effects import figures

    start = now()
    check_there(s, s.get("split"))
    texts = passages(s.get("text"))
    model, arms, tools, rests_on = chosen_arms(session, s)
    prompts = unseen(s, harmless_prompts(s), rests_on)
    options = {name: s.get(name) for name in ("max_new_tokens", "seed")}
    key = answering_key(model) | rests_on | options | {
        "fingerprint": fingerprint_of(prompts),
        "text": hashlib.sha256("\n\n".join(texts).encode()).hexdigest(),
        "arms": [arm.record for arm in arms],
    }  # fmt: skip
    path = EFFECTS.path(s.run)
    if unchanged(s, EFFECTS, key):
        table = EFFECTS.read(s.run)
    else:
        themes, _ = asked_themes(s, prompts.select("dataset", "id", "prompt"))
        text_name = s.get("text").stem if s.get("text") else "plain"
        counted = partial(figures, datasets=prompts["dataset"].to_list(), themes=themes["theme"].to_list(),
                          text_name=text_name, seed=options["seed"])  # fmt: skip
        table = side_effects(model, prompts, texts, tools, path, arms=arms, broken=are_broken, figures=counted,
                             max_new_tokens=options["max_new_tokens"], batch_tokens=s.get("batch_tokens"))  # fmt: skip
        note(s, EFFECTS, key, model, start, data=s.get("data"))
    return {"prompts": prompts.height, "passages": len(texts), "table": table, "wrote": str(path)}


def harmless_prompts(s: Settings) -> "pl.DataFrame":
    """Benign rows of --data and --split, near-misses among them."""
    import polars as pl

    split = s.get("split")
    prompts = prompts_of(s, split).filter(pl.col("label") == "benign")
    if prompts.is_empty():
        raise UserError(f"no benign prompt in split {split!r}: --benign NAME_OR_FILE adds some, --split takes others")
    return prompts


def unseen(s: Settings, prompts: "pl.DataFrame", rests_on: dict[str, str]) -> "pl.DataFrame":
    """The first --limit prompts that nothing was fitted to or chosen on; those that are left out are counted."""
    import polars as pl

    from reports.scoring.scores import same_text

    fitted = fitted_texts(s, rests_on)
    kept = prompts.filter(
        ~pl.col("prompt").map_elements(lambda text: same_text(text) in fitted, return_dtype=pl.Boolean)
    )
    if kept.height < prompts.height:
        warn(f"{prompts.height - kept.height} of {prompts.height} harmless prompts were used for fitting and are left out"
             + ("" if kept.height else "; only plain text is left: pass other --data or --split"))  # fmt: skip
    return kept[: s.get("limit")]
