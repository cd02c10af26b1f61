"""What a server says of itself, and what stands in its place."""

import pytest

from data.errors import UserError
from interventions.backends.backend import open_backend
from interventions.backends.ndif.server import deployments, listed, pick, pick_llama, preflight
from tests.faults.ndif import LISTING, standing_in
from tests.faults.sockets import raw_server, redirecting, silent

pytestmark = pytest.mark.usefixtures("fast")


def test_models_are_listed_once_and_the_right_llama_is_picked():
    models = listed(LISTING["deployments"])
    assert [one.name for one in models if one.state == "RUNNING"] == [
        "meta-llama/Llama-3.1-70B",
        "meta-llama/Llama-3.3-70B-Instruct",
        "openai-community/gpt2",
    ]
    llama = pick(models)
    assert llama is not None and llama.name == "meta-llama/Llama-3.3-70B-Instruct"
    assert pick([one for one in models if not one.is_llama]) is None
    smaller = {
        **LISTING["deployments"]["ModelActor:4"],
        "repo_id": "x/Llama-3.2-3B-Instruct",
        "n_params": 3_000_000_000,
    }
    llama = pick(listed({**LISTING["deployments"], "ModelActor:6": smaller}))
    assert llama is not None and llama.name == "x/Llama-3.2-3B-Instruct"


def test_where_no_llama_runs_what_does_is_named():
    only = {"deployments": {"a": LISTING["deployments"]["ModelActor:3"]}}
    with (
        standing_in(pages={"/status": (200, only)}) as server,
        pytest.raises(UserError, match=r"up: openai-community/gpt2"),
    ):
        pick_llama(server.address)


PREFLIGHT = [
    ({"/ping": (200, "hello")}, "no NDIF server"),
    ({"/ping": (404, b"<html>")}, "is it an NDIF server"),
    ({"/ping": (200, b"<html>")}, "no NDIF server"),
    ({"/connected": (503, {"detail": "compute backend is reconnecting"})}, "its compute is not: compute backend is"),
    ({"/connected": (500, {"detail": "Internal server error."})}, r"fails \(500"),
    ({"/env": (200, {"python_version": "3", "packages": {"nnsight": "0.7.2"}})}, "pip install nnsight==0.7.2"),
]


@pytest.mark.parametrize(("pages", "reason"), PREFLIGHT)
def test_preflight_says_what_is_wrong(pages, reason):
    with standing_in(pages=pages) as server, pytest.raises(UserError, match=reason):
        preflight(server.address)


def test_preflight_of_a_silent_server_is_short():
    with raw_server(silent) as address, pytest.raises(UserError, match=r"did not answer /ping within 0.5 s"):
        preflight(address, 0.5)


def test_preflight_passes_where_all_is_well_or_versions_are_not_told():
    with standing_in() as server:
        preflight(server.address)
        server.pages["/env"] = (404, {})
        preflight(server.address)
        assert open_backend("remote", server.address).is_remote


@pytest.mark.parametrize("body", [b"[]", b'{"deployments": 3}', b'{"deployments": {"a": 3}}', b"{}"])
def test_a_listing_that_is_none(body):
    with standing_in(pages={"/status": (200, body)}) as server, pytest.raises(UserError, match="can't be read"):
        deployments(server.address)


def test_a_redirect_is_told_not_followed():
    with raw_server(redirecting) as address, pytest.raises(UserError, match="sends its visitors on to https://else/x"):
        preflight(address)
