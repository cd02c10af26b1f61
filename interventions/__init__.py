"""Everything that touches a model, through nnsight: reading the residual stream and steering it."""

from typing import TYPE_CHECKING, Any

import anyio._backends._asyncio  # noqa: F401  # before nnsight puts `.save` on everything, or its classes fail

if TYPE_CHECKING:
    from interventions.extraction import extract
    from interventions.generation import generate
    from interventions.models import Model, open_model
    from interventions.vectors import SteeringVectors

__all__ = ["Model", "SteeringVectors", "extract", "generate", "open_model"]

_HOMES = {
    "Model": "interventions.models",
    "open_model": "interventions.models",
    "extract": "interventions.extraction",
    "SteeringVectors": "interventions.vectors",
    "generate": "interventions.generation",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: `--help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
