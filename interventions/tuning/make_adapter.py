"""Make the embedded adapter: `python -m interventions.tuning.make_adapter [MIRROR]`, behind `make adapter`.

It learns from the embedded sample's training rows alone; the validation rows choose the epoch; the test rows, and the
hub's data sets if their folder is given, only give the card its figures.
"""

import logging
import shutil
import sys
from pathlib import Path

import polars as pl

from data import load_all
from data.contract import RESPOND
from data.errors import UserError
from data.prompts.answers import load_training
from data.store.rundir import appearing
from interventions.model.embedded import ADAPTER, BASE
from interventions.model.model import Model
from interventions.model.opening import open_model
from interventions.steering.first_token import first_tokens
from interventions.tuning.finetune import ADAPTER as SUBFOLDER
from interventions.tuning.finetune import finetune
from interventions.tuning.first_token import measure

logger = logging.getLogger(__name__)

EPOCHS = 3  # by the fourth the training rows are known by heart
OUT = Path("runs/adapter/model")
OTHERS = ("coconot:original/test", "coconot:contrast", "xstest/safe", "xstest/unsafe", "advbench", "alpaca")
ALPACA = 500  # rows of the largest


def main(mirror: Path | None) -> None:
    """Train, measure, and put the adapter with its card in the place of the embedded one."""
    report = finetune(
        BASE, load_training(["embedded", "embedded:lessons"]), OUT, epochs=EPOCHS, dtype="bfloat16", device="cpu"
    )
    logger.info("%s", report)
    model = open_model(str(OUT), device="cpu")
    figures = own_figures(model) + (hub_figures(model, mirror) if mirror else "")
    logger.info("%s", figures)
    with appearing(ADAPTER, replace=True) as folder:
        shutil.copytree(OUT / SUBFOLDER, folder, dirs_exist_ok=True)
        card = folder / "README.md"
        card.write_text(card.read_text("utf-8") + figures, "utf-8")


def own_figures(model: Model) -> str:
    """Markdown: how well the first tokens fit the embedded test rows."""
    rows = load_all(["embedded/test"])
    found = measure(first_tokens(model, rows["prompt"].to_list()), rows)
    recall = "\n".join(f"| `[{name}]` | {share:.3f} |" for name, share in found.recall.items())
    return f"""
## Figures
The most probable first token on the {found.n} test rows of the embedded sample: a control token for {found.control:.3f}, the
right one for {found.category:.3f}, rightly a refusal or `[respond]` for {found.refusal:.3f}.

| right token | share that opens with it |
|---|---|
{recall}
"""


def hub_figures(model: Model, mirror: Path) -> str:
    """Markdown: share of other data sets' prompts whose most probable first token is a refusal token."""
    lines = []
    for name in OTHERS:
        try:
            rows = load_all([name], mirror).head(ALPACA if name == "alpaca" else sys.maxsize)
        except UserError as error:
            logger.warning("left out: %s", error)
            continue
        first = first_tokens(model, rows["prompt"].to_list())
        refused = sum(token not in (None, RESPOND) for token in first) / rows.height
        lines.append(f"| {name} | {', '.join(kinds(rows)) or 'no label'} | {rows.height} | {100 * refused:.1f} |")
    return (
        "\nPrompts of other data sets, none of them learned from, whose most probable first token is a refusal token:\n\n"
        "| data set | label | prompts | refused, percent |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def kinds(rows: pl.DataFrame) -> list[str]:
    """The labels that occur."""
    return sorted(rows["label"].drop_nulls().unique())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
