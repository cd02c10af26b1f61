"""Everything that touches a model, through nnsight: reading the residual stream and steering it. Imports data."""

from typing import TYPE_CHECKING, Any

import anyio._backends._asyncio  # noqa: F401  # before nnsight puts `.save` on everything, or its classes fail

if TYPE_CHECKING:
    from interventions.methods.vectors import SteeringVectors
    from interventions.model.model import Model
    from interventions.model.opening import open_model
    from interventions.reading.extract import extract
    from interventions.steering.generate import generate

__all__ = ["Model", "SteeringVectors", "extract", "generate", "open_model"]

_HOMES = {
    "Model": "interventions.model.opening",
    "open_model": "interventions.model.opening",
    "extract": "interventions.reading.extract",
    "SteeringVectors": "interventions.methods.vectors",
    "generate": "interventions.steering.generate",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: `--help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
