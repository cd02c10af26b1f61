"""Engine against engine: do they say the same?"""

from reports.page import wording as say
from reports.page.blocks import Prose, Section, Table
from reports.page.run import Run

NOTE = (
    "A layer's deviation is the largest over prompts of ‖h′ − h‖ / ‖h‖ at the last prompt token; KL is of the first generated token's distribution, nats. "
    "Answers that differ near a tie do so first between two tokens that the reference finds almost as probable as one another: "
    "rounding alone decides there."
)


def section(run: Run) -> Section | None:
    """A table of answers and first distributions, and one of each pair's largest deviation; None where nothing was held together."""
    arms, layers = run.table("parity"), run.table("parity_layers")
    if arms is None or layers is None:
        return None
    shown = say.table_of(
        arms,
        ("engine", say.name, "engine"),
        ("against", say.name, "against"),
        ("arm", say.name, "arm"),
        ("prompts", say.number, "prompts"),
        ("equal answers", say.number, "equal"),
        ("differ near a tie", say.number, "near_ties"),
        ("differ", say.number, "differ"),
        ("median place of the first difference", say.number, "first_difference"),
        ("mean KL", say.number, "kl_mean"),
        ("largest KL", say.number, "kl_max"),
    )
    worst = layers.sort("deviation", descending=True).unique(["engine", "against"], keep="first", maintain_order=True)
    told = "; ".join(
        f"{row['engine']} and {row['against']}: {say.number(row['deviation'], 2)} of its length, at layer {say.number(row['layer'])}"
        for row in worst.to_dicts()
    )
    return Section(
        "parity",
        "Engine against engine",
        [
            Prose(f"Largest deviation of the residual stream. {told}."),
            Table("parity", arms, shown),
            Prose(NOTE, "note"),
        ],
    )
