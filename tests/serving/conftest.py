"""A server over the tiny model, on a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.made.tools import arms_of, probe_of, vectors_of

WORDS = [
    "baseline",
    "fixed:strength=-5",
    "fixed:category=weapons,strength=-5",
    "gated:benign=-6,harmful=4",
    "routed",
    "prompt-only:text=tell me",
]


@contextmanager
def serving(model, *, rows=32, queue=128, rules=None, words=WORDS, probe=True) -> Iterator:
    """(address, offer, engine) of a server that runs in a thread."""
    from interventions.steering.arms import Arm
    from interventions.steering.live.engine import Engine
    from interventions.steering.plans import Tools
    from serving.offer import Offer

    vectors = vectors_of(model)
    arms = arms_of(words)
    default = Arm("fixed", "fixed", 2, strength=-5.0, unit="unit")
    about = {
        "run": "made", "model": model.name, "layers": vectors.layers, "layer": 2, "categories": vectors.categories, "gates": ["probe"],
        "arms": [{"name": arm.name, "kind": arm.kind, "layer": arm.layer, "category": arm.category, "strength": arm.strength, "unit": arm.unit,
                  "scope": arm.scope, "gate": arm.gate, "steers": arm.steers, "gated": arm.is_gated, "routed": arm.is_routed} for arm in arms],
        "projects": True, "trade_off": [],
    }  # fmt: skip
    offer = Offer(model, Tools(vectors, probe_of(model) if probe else None), arms, default, 512, 16, about)
    engine = Engine(model, vectors, rows=rows, queue=queue)
    with listening(offer, engine, rules) as address:
        yield address, offer, engine


@contextmanager
def listening(offer, engine, rules=None) -> Iterator[str]:
    """Address of a server of this offer, until it is left."""
    import uvicorn

    from serving.app import application
    from serving.guard import Rules

    taken = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(offer, engine, rules or Rules()), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        taken.close()


@pytest.fixture(scope="session")
def served(tiny_tuned):
    """A server for all tests that break nothing."""
    pytest.importorskip("fastapi")
    with serving(tiny_tuned) as found:
        yield found


@pytest.fixture
def serve_tiny(tiny_tuned):
    """Makes one of its own."""
    pytest.importorskip("fastapi")
    return lambda **options: serving(tiny_tuned, **options)
