"""Everything that touches a model, through nnsight: reading the residual stream and steering it. Imports data."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interventions.interactive import open_model
    from interventions.methods.vectors import SteeringVectors
    from interventions.model.model import Model
    from interventions.reading.extract import extract
    from interventions.steering.generate import generate


def _import_anyio() -> None:
    """Import what the hub's client needs while `.save` is not on everything, where nnsight puts it: its classes would fail."""
    nnsight = sys.modules.get("nnsight")
    if nnsight is None or "anyio._backends._asyncio" in sys.modules:
        import_module("anyio._backends._asyncio")
        return
    from nnsight._c import mount, unmount

    mounted = callable(getattr(object, "save", None))
    if mounted:
        unmount("save")
    import_module("anyio._backends._asyncio")
    if mounted:
        mount(nnsight.save, "save")


def _check_siblings() -> None:
    """Is `data` this project's, and no other package of that name, such as one in the folder that Python was started in?"""
    import data

    own, found = Path(__file__).resolve().parents[1], Path(data.__file__ or ".").resolve().parents[1]
    if found != own:
        raise ImportError(f"{data.__file__} is another package called `data`: start Python in another folder, or put {own} first "
                          "on sys.path")  # fmt: skip


_import_anyio()
_check_siblings()

__all__ = ["Model", "SteeringVectors", "extract", "generate", "open_model"]

_HOMES = {
    "Model": "interventions.interactive",
    "open_model": "interventions.interactive",
    "extract": "interventions.reading.extract",
    "SteeringVectors": "interventions.methods.vectors",
    "generate": "interventions.steering.generate",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: `--help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
