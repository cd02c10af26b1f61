"""`serve`: a run's arms as an OpenAI-compatible endpoint, and a page to try them."""

import ipaddress
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.framework.app import Session, command
from commands.framework.arms import chosen_arms, single_arm
from commands.framework.artefacts import (  # fmt: skip
    FITTED_METHODS,
    GATE_FOLDER,
    GENERATIONS,
    LOWRANK,
    PROBE,
    SUMMARY,
    Artefact,
    gate_artefact,
    unfit,
)
from commands.framework.options import (
    ALLOW_HOST,
    ALLOW_ORIGIN,
    FOLLOW,
    LISTEN,
    PORT,
    QUEUE,
    ROWS,
    SERVED_TOKENS,
    STEERING,
)
from commands.framework.output import Summary, warn
from commands.framework.settings import Settings
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.steering.arms import Arm
    from interventions.steering.plans import Tools
    from serving.offer import Offer

TOKEN = "REFUSAL_SERVE_TOKEN"


@command(*STEERING, SERVED_TOKENS, FOLLOW, PORT, LISTEN, ALLOW_HOST, ALLOW_ORIGIN, ROWS, QUEUE, writes=False)
def serve(session: Session, s: Settings) -> Summary:
    """Answer over HTTP: the run's arms as models of an OpenAI-compatible endpoint, and a page to try them, until it is stopped."""
    try:
        import uvicorn  # noqa: F401

        from serving.app import application
    except ImportError:
        raise UserError("serve needs FastAPI and uvicorn: pip install 'refusal-steering[serve]'") from None
    from data.store.rundir import writing
    from interventions.steering.live.engine import Engine
    from serving.guard import Rules
    from serving.running import run_server

    address, token = s.get("listen") or "127.0.0.1", ""
    if not _is_loopback(address):
        token = os.environ.get(TOKEN, "") or secrets.token_urlsafe(24)
        if len(token) < 16:
            raise UserError(f"{TOKEN} has fewer than 16 characters, which can be guessed: pass a longer one, or none to get one made")  # fmt: skip
    with writing(s.run):
        offer = make_offer(session, s)
    rules = Rules(token, [name.lower() for name in (*s.get("allow_host"), address)], s.get("allow_origin"), bool(token))
    engine = Engine(offer.model, offer.tools.vectors, rows=s.get("rows"), queue=s.get("queue"))
    if not engine.decoder.samples:
        warn(
            "answers of this backend come back whole and greedy, those of one arm together: no sampling, no log-probabilities"
        )

    def ready(port: int) -> None:
        shown = f"[{address}]" if ":" in address else address
        at = f"http://{shown}:{port}"
        warn(f"{at}/  a page to try it;  {at}/v1  an OpenAI-compatible endpoint;  models: {', '.join(offer.names)}")
        if token and not os.environ.get(TOKEN):
            warn(f"requests need Authorization: Bearer {token}; the page opens with {at}/#token={token}")

    try:
        answered = run_server(application(offer, engine, rules), address, s.get("port"), ready)
    finally:
        engine.close()
    return {"requests": answered}


def make_offer(session: Session, s: Settings) -> "Offer":
    """The run's arms and all that they, and settings tried on the page, may draw on."""
    from interventions.steering.arms import together
    from serving.offer import Offer

    model, arms, tools, _ = chosen_arms(session, s)
    if not s.get("arm"):
        arms = together([*arms, *_answered(s, arms)])
    arms = [arm for arm in arms if not arm.reads_labels]
    if not arms:
        raise UserError("every arm asked for reads labels, and a request has none: pass --arm baseline or another")
    vectors = tools.vectors
    default = single_arm(s, model, vectors)
    tools = _every_tool(session, s, tools)
    about = {
        "run": s.run.name,
        "model": model.name,
        "arms": [_arm(arm) for arm in arms],
        "layers": vectors.layers,
        "layer": default.layer,
        "categories": vectors.categories,
        "gates": [name for name in tools.every_gate if name != "perfect"],
        "default": _arm(default),
        "max_new_tokens": s.get("max_new_tokens"),
        "trade_off": trade_off(s.run, arms),
        "projects": model.goes_on,
    }
    return Offer(model, tools, arms, default, max(s.get("max_new_tokens"), 4096), s.get("max_new_tokens"), about)


def _arm(arm: "Arm") -> dict[str, Any]:
    """What the page needs to know of an arm."""
    names = ("name", "kind", "layer", "category", "strength", "harmful", "unit", "scope", "gate")
    return {name: getattr(arm, name) for name in names} | {
        "steers": arm.steers,
        "gated": arm.is_gated,
        "routed": arm.is_routed,
    }


def _answered(s: Settings, known: "Sequence[Arm]") -> "list[Arm]":
    """Arms that `generate` answered in, whose tools are all there."""
    from commands.framework.answers import arms_of, drawn_on

    records = _records(s)
    if GENERATIONS.name not in records:
        return []
    settings = [arm.setting for arm in known]
    return [arm for arm in arms_of(records[GENERATIONS.name]) if arm.setting not in settings and set(drawn_on(arm)) <= set(records)]  # fmt: skip


def _every_tool(session: Session, s: Settings, tools: "Tools") -> "Tools":
    """Beside what the arms draw on all else that lies in the run and fits."""
    from dataclasses import replace

    def there(artefact: Artefact[Any]) -> Any:
        fits = artefact.name in _records(s) and not unfit(session, s, artefact)
        return artefact.read(s.run) if fits else None

    names = [name.removeprefix(GATE_FOLDER) for name in _records(s) if name.startswith(GATE_FOLDER)]
    gates = {name: gate for name in names if (gate := tools.gates.get(name) or there(gate_artefact(name))) is not None}
    methods = {name: tools.methods.get(name) or there(artefact) for name, artefact in FITTED_METHODS.items()}
    return replace(
        tools,
        probe=tools.probe or there(PROBE),
        lowrank=tools.lowrank or there(LOWRANK),
        gates={**tools.gates, **gates},
        methods={name: method for name, method in methods.items() if method is not None},
    )


def trade_off(run: Path, arms: "Sequence[Arm]") -> list[dict[str, Any]]:
    """Rates that the run has measured: for each arm over-refusal and refusal, by the scorer that is trusted most."""
    import polars as pl

    from data.contract import SCORERS

    path = SUMMARY.path(run)
    if not path.exists():
        return []
    table = SUMMARY.load(path).filter(pl.col("dataset") == "(pooled)")
    scorer = next((name for name in SCORERS if name in table["scorer"].unique().to_list() and name != "hand"), None)
    rows = table.filter(pl.col("scorer") == scorer)
    found = []
    for name in rows["arm"].unique(maintain_order=True):
        sides = {label: rows.filter((pl.col("arm") == name) & (pl.col("label") == label)).to_dicts() for label in ("benign", "harmful")}  # fmt: skip
        if all(side and side[0]["rate"] is not None for side in sides.values()):
            told: Mapping[str, Any] = {label: {key: side[0][key] for key in ("rate", "low", "high", "n")} for label, side in sides.items()}  # fmt: skip
            found.append({"arm": name, "scorer": scorer, **told})
    known = {arm.name for arm in arms}
    return sorted(found, key=lambda one: one["arm"] not in known)


def _records(s: Settings) -> dict[str, Any]:
    from data.store.rundir import records

    return records(s.run)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
