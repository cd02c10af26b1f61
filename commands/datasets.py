"""`datasets`: what can be named after --data."""

from commands.framework.app import Session, command
from commands.framework.output import Summary
from commands.framework.settings import Settings


@command(writes=False)
def datasets(_session: Session, s: Settings) -> Summary:
    """List every known data set: name, rows, licence, gated or not, origin."""
    from data.prompts.catalogue import table

    known = table()
    shown = known if s.get("as_json") else known.select("name", "rows", "licence", "gated", "hub", "origin")
    return {"sets": known.height, "table": shown}
