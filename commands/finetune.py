"""`finetune`: teach a model refusal tokens."""

import hashlib
from pathlib import Path
from typing import Any

import click

from commands.framework.app import Session, command
from commands.framework.prompts import fingerprint_of
from commands.framework.records import MODEL, note, unchanged
from commands.framework.settings import Finite, Settings
from data.errors import UserError

DATA = ("embedded", "embedded:lessons")
BATCH_TOKENS = 1024
BASE = "smollm2"


@command(
    click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The model folder.  [default: RUN/model]"),
    click.option("--rank", type=click.IntRange(min=1), help="Rank of the LoRA.  [default: 8]"),
    click.option("--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="At its peak.  [default: 0.001]"),
    click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training rows; the best on the validation "
                 "rows is kept.  [default: 4]"),
    click.option("--max-tokens", type=click.IntRange(min=8), help="Cut answers there; leave out longer prompts.  "
                 "[default: 256]"),
    click.option("--token-weight", type=Finite(), help="Weight of the control token's loss against the answer's.  [default: 1]"),
    click.option("--balance", type=click.FloatRange(0, 1), help="0 weighs rows alike, 1 categories.  [default: 0.5]"),
    click.option("--template", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Chat template, Jinja.  "
                 "[default: the model's own, without a default system prompt]"),
)  # fmt: skip
def finetune(_session: Session, s: Settings) -> dict[str, Any]:
    """Teach a model refusal tokens: a model folder that --model opens, and a LoRA adapter.

    Rows of the split train teach, those of validation choose the epoch. The tokens are named after the data's own
    categories; a file may have a column response. Defaults here: --model smollm2, --data embedded and embedded:lessons,
    --batch-tokens 1024, --device cuda if there is one.
    """
    import polars as pl

    from data import for_split
    from data.prompts.answers import load_training
    from data.store.rundir import now
    from interventions.tuning.finetune import check_out
    from interventions.tuning.finetune import finetune as train

    if s.get("where", "local") == "remote":
        raise UserError("finetune writes weights, which a remote run does not have: run it with --local")
    start, base, out = now(), s.get("model", BASE), s.get("out", s.run / "model")
    check_out(out)
    sources = s.get("data", DATA)
    rows = load_training(sources, s.get("data_mirror"))
    if s.get("split"):
        rows = for_split(rows, s.get("split")).with_columns(pl.lit(None, pl.String).alias("split"))
    rows = rows.head(s.get("limit", rows.height))
    if rows.is_empty():
        raise UserError(f"no row in split {s.get('split')!r}: pass --split or other --data")
    template = s.get("template")
    options = {
        "rank": s.get("rank", 8),
        "learning_rate": s.get("learning_rate", 1e-3),
        "epochs": s.get("epochs", 4),
        "batch_tokens": s.get("batch_tokens", BATCH_TOKENS),
        "max_tokens": s.get("max_tokens", 256),
        "token_weight": s.get("token_weight", 1.0),
        "balance": s.get("balance", 0.5),
        "template": template.read_text("utf-8") if template else None,
        "seed": s.get("seed", 0),
        "dtype": s.get("dtype"),
    }
    answers = hashlib.sha256(rows.select("response").write_json().encode()).hexdigest()[:16]
    key = {"base": base, "fingerprint": fingerprint_of(rows), "answers": answers, "out": str(out), **options}
    if not unchanged(s, MODEL, key, out / "config.json"):
        report = train(base, rows, out, device=s.get("device"), **options)
        note(s, MODEL, key, None, start, like={"model": base}, data=list(sources), options=s.given())
        best = report.epochs[report.kept - 1]
        accuracy = {"right token": f"{best.category_accuracy:.3f}", "refuse or comply": f"{best.refusal_accuracy:.3f}"}
        return {
            "tokens": [token.token for token in report.control_tokens],
            "rows": report.train_rows,
            "kept epoch": report.kept,
            "on validation rows": report.validation_rows,
            **accuracy,
            "seconds": round(report.seconds),
            "wrote": str(out),
        }
    return {"made already": True, "wrote": str(out)}
