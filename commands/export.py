"""`export`: carry the vectors, or the answers, away, into other programs."""

from commands.framework.activations import nearest_default
from commands.framework.app import Session, command
from commands.framework.artefacts import GENERATIONS, VECTORS, need
from commands.framework.options import CATEGORY, DEPTH, FORMAT, LAYERS, OUT, STRENGTH, UNIT
from commands.framework.output import Summary, direction
from commands.framework.settings import Settings
from data.contract import ANSWERS_FORMAT, FORMATS, ONE_VECTOR


@command(
    FORMAT, OUT.but(help="The file, or of inspect the folder.", shown="RUN/export/FORMAT with the format's ending"),
    LAYERS.but(help="Blocks.", shown=f"the one nearest to {DEPTH} for gguf and lm-eval, else all"),
    CATEGORY.but(help="Whose vector.", default=None, shown="the mean of all for gguf and lm-eval, else each"),
    STRENGTH.but(help="Of the exported vector: 1 is as it is, towards refusal, -1 the same away from it; its reader's strength multiplies it.", default=1.0), UNIT.but(help="Of the strength.", default="raw"),
)  # fmt: skip
def export(session: Session, s: Settings) -> Summary:
    """Write the vectors for llama.cpp, lm-eval or plain PyTorch; or with --format inspect the answers, as logs of Inspect.

    Unlike bake, whose default steers away from refusal, it writes by default the vectors as they are, which point towards
    refusal: the program that reads them sets how much is added, and a negative strength there, or here, is away from it.
    """
    from interventions.carried.export import export as write

    if s.get("format") == ANSWERS_FORMAT:
        return export_answers(session, s)
    steering, record = need(session, s, VECTORS)
    kind = s.get("format")
    one = nearest_default(steering.layers, record["n_layers"])
    layers = s.get("layers") or ([one] if kind in ONE_VECTOR else steering.layers)
    path = s.get("out") or s.run / "export" / f"{kind}{FORMATS[kind]}"
    blocks = "layers"
    if kind == "lm-eval":  # which finds them by their names in the model
        from interventions.model.blocks import blocks_below_base
        from interventions.model.opening import skeleton

        blocks = blocks_below_base(skeleton(record["model"]), record["model"])
    write(steering, kind, path, layers=layers, category=s.get("category"), strength=s.get("strength"),
          unit=s.get("strength_unit"), blocks=blocks)  # fmt: skip
    named = {"layer": layers[0]} if len(layers) == 1 else {}
    return {"model": record["model"], "format": kind, "layers": len(layers), **named, "strength": s.get("strength"),
            "unit": s.get("strength_unit"), "direction": direction(s.get("strength")), "wrote": str(path)}  # fmt: skip


def export_answers(session: Session, s: Settings) -> Summary:
    """Write what `generate` answered as Inspect's logs, one an arm and label."""
    from refusal_steering.logs import write_logs

    generations, record = need(session, s, GENERATIONS)
    folder = s.get("out") or s.run / "export" / ANSWERS_FORMAT
    logs = write_logs(s.run, generations, folder)
    return {
        "model": record["model"],
        "format": ANSWERS_FORMAT,
        "answers": generations.height,
        "logs": len(logs),
        "wrote": str(folder),
    }
