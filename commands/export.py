"""`export` and `bake`: carry the vectors away, into other programs or into the weights."""

from pathlib import Path
from typing import Any

import click

from commands.extract import nearest_default
from commands.framework.app import Session, command
from commands.framework.settings import Finite, Layers, Settings
from commands.vectors import need_vectors

ENDINGS = {"gguf": ".gguf", "lm-eval": ".pt", "pt": ".pt", "safetensors": ".safetensors"}


@command(
    click.option("--format", type=click.Choice(list(ENDINGS)), help="gguf: llama.cpp's --control-vector; lm-eval: its "
                 "`steered` model; pt; safetensors.  [default: safetensors]"),
    click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file.  [default: "
                 "RUN/export/FORMAT with the format's ending]"),
    click.option("--layers", type=Layers(), help="Blocks.  [default: the one nearest to round(18/32 · n_layers) for gguf "
                 "and lm-eval, else all]"),
    click.option("--category", help="Whose vector.  [default: the mean of all for gguf and lm-eval, else each]"),
    click.option("--strength", type=Finite(), help="How much of it.  [default: 1]"),
    click.option("--strength-unit", type=click.Choice(["raw", "unit", "residual"]), help="Of the strength.  [default: raw]"),
)  # fmt: skip
def export(session: Session, s: Settings) -> dict[str, Any]:
    """Write the vectors for llama.cpp, lm-eval or plain PyTorch."""
    from interventions.carried.export import export as write

    steering, record = need_vectors(session, s)
    kind = s.get("format", "safetensors")
    one = nearest_default(steering.layers, record["n_layers"])
    layers = s.get("layers") or ([one] if kind in ("gguf", "lm-eval") else steering.layers)
    path = s.get("out", s.run / "export" / f"{kind}{ENDINGS[kind]}")
    write(steering, kind, path, layers=layers, category=s.get("category"), strength=s.get("strength", 1.0),
          unit=s.get("strength_unit", "raw"))  # fmt: skip
    named = {"layer": layers[0]} if len(layers) == 1 else {}
    return {"model": record["model"], "format": kind, "layers": len(layers), **named, "wrote": str(path)}
