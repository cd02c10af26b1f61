"""`check`: does this tool read and steer a model rightly?"""

from commands.framework.app import Session, command
from commands.framework.options import FOR
from commands.framework.output import Summary, emit
from commands.framework.settings import Settings
from data.errors import UserError

OPENS = "opens"  # a check that fails alone: without a model there is no other


@command(FOR, writes=False)
def check(session: Session, s: Settings) -> Summary:
    """Hold a model against plain hooks before hours of compute; exit 1 if anything does not hold.

    Prompts, padding, cache, answers steered in every scope, and what bake would write are compared with what transformers'
    own module gives, one row at a time. What does not hold is said with the commands that are off for the model; --for
    COMMAND asks for one command's sake alone.
    """
    import polars as pl

    from interventions.carried.checks import every_check, off
    from interventions.reading.checks import EVERY, Check

    asked = s.get("wanted")
    wanted = [name for name in EVERY if not asked or name.partition(" ")[0] in asked]
    try:
        model = session.model(s, trusted=True)
        name, found = model.name, every_check(model, wanted)
    except UserError as refusal:
        if s.get("where") == "remote" or s.get("engine") == "vllm":
            raise
        name, found = s.get("model"), [Check(OPENS, False, str(refusal), tuple(wanted))]
    odd, stopped = [one.name for one in found if not one.holds], off(found)
    rows = [{"check": one.name, "holds": one.holds, "found": one.found, "off": list(one.off)} for one in found]
    table = pl.DataFrame(rows, {"check": pl.String, "holds": pl.Boolean, "found": pl.String, "off": pl.List(pl.String)})
    told: Summary = {"model": name, "checks": len(found), "hold": len(found) - len(odd), "table": table}
    if not s.get("as_json"):
        told["table"] = table.select("check", "holds", "found")
    if not odd:
        return told
    emit("check", told | ({"off": stopped} if s.get("as_json") else {}), s.get("as_json"))
    if odd == [OPENS]:
        raise UserError(f"{name} can't be opened, so that every command is off: {found[0].found}")
    raise UserError(f"{name}: {', '.join(odd)} {'does' if len(odd) == 1 else 'do'} not hold; off: {', '.join(stopped)}; "
                    "--for COMMAND asks for one command's sake alone")  # fmt: skip
