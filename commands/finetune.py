"""`finetune`: teach a model refusal tokens."""

import hashlib

from commands.framework import options as o
from commands.framework.app import Session, command
from commands.framework.artefacts import MODEL_FOLDER
from commands.framework.output import Summary
from commands.framework.prompts import fingerprint_of
from commands.framework.records import note, unchanged
from commands.framework.settings import Settings, Values
from commands.framework.types import FOLDER
from data import contract
from data.errors import UserError


@command(
    o.OUT.but(help="The model folder.", type=FOLDER, shown="RUN/model"), o.RANK, o.LEARNING_RATE,
    o.EPOCHS.but(help="Passes over the training rows; the best on the validation rows is kept.", default=contract.EPOCHS),
    o.ANSWER_TOKENS, o.TOKEN_WEIGHT, o.BALANCE, o.TEMPLATE, o.MODEL.but(default=contract.BASE_MODEL, shown=None),
    o.DATA.but(default=("embedded", "embedded:lessons")),
    o.BATCH_TOKENS.but(default=contract.STEP_TOKENS, shown=None), o.SPLIT.but(shown="train and validation"),
)  # fmt: skip
def finetune(_session: Session, s: Settings) -> Summary:
    """Teach a model refusal tokens: a model folder that --model opens, and a LoRA adapter.

    Rows of the split train teach, those of validation choose the epoch. The tokens are named after the data's own
    categories; a file may have a column response.
    """
    import polars as pl

    from data import for_split
    from data.prompts.answers import load_training
    from data.store.rundir import now
    from interventions.tuning.finetune import check_out
    from interventions.tuning.finetune import finetune as train

    if s.get("where") == "remote":
        raise UserError("finetune writes weights, which a remote run does not have: run it with --local")
    odd = [name for name in ("device_map", "quantize") if s.get(name) not in (None, contract.UNQUANTISED)]
    if odd:
        raise UserError(f"finetune trains whole weights on one device: leave out --{odd[0].replace('_', '-')}")
    start, base, out = now(), s.get("model"), s.get("out") or s.run / "model"
    check_out(out)
    sources = s.get("data")
    rows = load_training(sources, s.get("data_mirror"))
    if s.get("split"):
        rows = for_split(rows, s.get("split")).with_columns(pl.lit(None, pl.String).alias("split"))
    rows = rows[: s.get("limit")]
    if rows.is_empty():
        raise UserError(f"no row in split {s.get('split')!r}: pass --split or other --data")
    template = s.get("template")
    names = (
        "rank",
        "learning_rate",
        "epochs",
        "batch_tokens",
        "max_tokens",
        "token_weight",
        "balance",
        "seed",
        "dtype",
    )
    options: Values = {"template": template.read_text("utf-8") if template else None}
    options |= {name: s.get(name) for name in names}
    answers = hashlib.sha256(rows.select("response").write_json().encode()).hexdigest()[:16]
    key = {"base": base, "fingerprint": fingerprint_of(rows), "answers": answers, "out": str(out), **options}
    if not unchanged(s, MODEL_FOLDER, key, out / "config.json"):
        report = train(base, rows, out, device=s.get("device"), **options)
        note(s, MODEL_FOLDER, key, {"model": base}, start, data=sources, elsewhere=out)
        best = report.epochs[report.kept - 1]
        return {"tokens": [token.token for token in report.control_tokens], "rows": report.train_rows, "kept epoch": report.kept,
                "on validation rows": report.validation_rows, "right token": f"{best.category_accuracy:.3f}",
                "refuse or comply": f"{best.refusal_accuracy:.3f}", "seconds": round(report.seconds), "wrote": str(out)}  # fmt: skip
    return {"made already": True, "wrote": str(out)}
