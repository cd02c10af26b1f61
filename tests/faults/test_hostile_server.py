"""A server that means harm: whatever it sends, the client says one line, stays small, runs nothing and asks nobody else."""

import gzip
import io
import pickle
import resource
import time
import zipfile
from dataclasses import replace

import nnsight
import numpy as np
import pytest
import torch
import zstandard
from nnsight.modeling.huggingface import _ID_CACHE

from data import load_all
from data.errors import UserError
from interventions.backends.backend import Backend
from interventions.backends.ndif import request as jobs
from interventions.backends.ndif.client import Client, address_of, cleaned, may_hold_results
from interventions.backends.ndif.request import Request
from interventions.backends.ndif.result import SPARE_BYTES, expect
from interventions.backends.ndif.server import deployments, key_words, version_table
from interventions.fitting.moments import mass_mean, together
from interventions.gates.fit import fits_of
from interventions.reading.projections import extract_projections
from interventions.reading.sums import extract_sums
from tests.faults.ndif import packed, standing_in
from tests.faults.suite import ASKED, SKIPPED, some

KIND = "hostile server replies"
MARK = []  # what a pickle would append to
SANDBOX = False


class Harm:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return MARK.append, (1,)


class Huge:
    """Takes a terabyte when it is unpickled."""

    def __reduce__(self):
        return bytearray, (1 << 40,)


@pytest.fixture(autouse=True, params=[False, True], ids=["trusted", "sandboxed"])
def key(request, monkeypatch):
    """What the server makes of the user's key, as far as a client can ask for it."""
    monkeypatch.setattr(f"{__name__}.SANDBOX", request.param)


@pytest.fixture(autouse=True)
def fast(monkeypatch, tiny_folder):
    monkeypatch.setitem(_ID_CACHE, str(tiny_folder), str(tiny_folder))
    monkeypatch.setattr(jobs, "RETRY_WAIT", 0.01)
    monkeypatch.setattr(jobs, "FIRST_WAIT", 0.01)


def ask(model, address):
    network, block, client = model.nnsight, model.layers[0], Client(address, 120.0, sandbox=SANDBOX)
    inputs = {"input_ids": torch.ones(1, 2, dtype=torch.long)}
    with torch.no_grad(), network.trace(inputs, backend=Request(network, client, "it")) as tracer:
        seen = nnsight.save(block.output)
        tracer.stop()
    return seen


def saved(value, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def repacked(content: bytes, compression: int, **replaced: bytes) -> bytes:
    """Torch's archive with other entries in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            last = name.rpartition("/")[2].replace(".", "_")
            new.writestr(name, replaced.get(last, old.read(name)))
    return buffer.getvalue()


GOOD = {"seen": torch.ones(2)}
BOMB = b"\0" * (SPARE_BYTES + (1 << 20))
PICKLES = {
    "bare": lambda: zstd(pickle.dumps({"seen": Harm()})),
    "in an archive": lambda: zstd(saved({"seen": Harm()})),
    "in an old archive": lambda: zstd(saved({"seen": Harm()}, _use_new_zipfile_serialization=False)),
    "of a late protocol": lambda: zstd(repacked(saved(GOOD), 0, data_pkl=pickle.dumps({"seen": Harm()}, 5))),
    "deflated": lambda: zstd(repacked(saved({"seen": Harm()}), zipfile.ZIP_DEFLATED)),
    "within a list in a list": lambda: zstd(saved({"seen": [[Harm()]]})),
}
RESULTS = {
    "no zstd": lambda: b"<html>",
    "zstd bomb": lambda: zstd(BOMB),
    "zstd with a window of gigabytes": lambda: zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=31)
    ).compress(BOMB[: 1 << 20]),
    "deflated bomb inside": lambda: zstd(repacked(saved({"seen": torch.zeros(1 << 22)}), zipfile.ZIP_DEFLATED)),
    "a terabyte of bytes": lambda: zstd(saved({"seen": Huge()})),
    "strides that repeat one number": lambda: packed(seen=torch.zeros(1).expand(1 << 20, 1 << 20)),
    "a sparse tensor": lambda: packed(seen=torch.zeros(3).to_sparse()),
    "a tensor without storage": lambda: packed(seen=torch.empty(1 << 40, device="meta")),
    "another name": lambda: packed(network=torch.ones(2)),
    "one name more": lambda: packed(seen=torch.ones(2), model=torch.ones(2)),
    "no name": lambda: packed(),
    "no names": lambda: zstd(saved([torch.ones(2)])),
    "a set": lambda: packed(seen={1, 2}),
    "cut short": lambda: zstd(saved(GOOD)[:-40]),
    **{f"pickle {name}": made for name, made in PICKLES.items()},
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_bad_result_is_one_line_and_nothing_runs(tiny, name, case):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = RESULTS[name]()
    with case(KIND):
        with standing_in(result=lambda _: made) as server, pytest.raises(UserError) as said:
            ask(tiny, server.address)
        text = str(said.value)
        assert "\n" not in text and len(text) < 300 and "weights_only" not in text and "not used" in text
        assert not MARK
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10


BODIES = {
    "nothing": b"",
    "an object": b"{}",
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "words": b"It works!",
    "html": b"<html>\x1b[2J<script>alert(1)</script></html>",
    "half of JSON": b'{"id": "x", "sta',
    "deep": b"[" * 100_000,
    "NaN": b'{"id": NaN, "status": NaN, "deployments": NaN}',
    "other types": b'{"id": [1], "status": {"a": 1}, "description": 7, "deployments": [[]], "packages": "x", "data": 3}',
    "an unknown state": b'{"id": "x", "status": "EXPLODED", "description": "\\u001b[31m"}',
    "a long text": b'{"id": "x", "status": "ERROR", "description": "' + b"a" * 1_000_000 + b'"}',
    "UTF-16": '{"id": "x"}'.encode("utf-16"),
    "gzip": gzip.compress(b"{}"),
}
PLACES = ("/request", "/response/job0", "/result/job0", "/ping", "/status", "/env", "/whoami")
REPLIES = [(code, body) for code in (200, 400, 403) for body in BODIES]


@pytest.mark.skipif(not ASKED, reason=SKIPPED)
@pytest.mark.parametrize("place", PLACES)
def test_any_reply_is_one_line_or_nothing_at_all(tiny, place, case):
    """Whatever stands in the place of each answer that a server gives."""
    for code, body in some(REPLIES, 6):
        with case(KIND), standing_in(pages={place: (code, BODIES[body])}) as server:
            for asked in (lambda: ask(tiny, server.address), lambda: deployments(server.address, 5.0),
                          lambda: version_table(server.address, 5.0), lambda: key_words(server.address, 5.0)):  # fmt: skip
                start = time.monotonic()
                try:
                    asked()
                except UserError as error:
                    text = str(error)
                    assert text.isprintable() and len(text) < 1000, (place, code, body, text)
                assert time.monotonic() - start < 60, (place, code, body)
    assert not MARK


@pytest.mark.parametrize("where", ["http://example.org/x", "http://127.0.0.2:1/x", "https://amazonaws.com.example.org/x",
                                   "https://user@example.org/x", "file:///etc/passwd", "http://[::1]:80/x"])  # fmt: skip
def test_a_result_elsewhere_is_not_fetched(tiny, where):
    done = {"id": "x", "status": "COMPLETED", "description": "done", "data": where}
    with standing_in(on_poll=lambda *_: (200, done)) as server, pytest.raises(UserError) as said:
        ask(tiny, server.address)
    assert "not fetched" in str(said.value) or "came back empty" in str(said.value)


def test_stores_of_ndif_may_hold_results():
    address = "https://api.ndif.us"
    for name in ("ndif-results.s3.amazonaws.com/x?y=1", "ndif-results.s3.us-east-2.amazonaws.com/x", "files.ndif.us/x",
                 "s3.us-east-1.amazonaws.com/ndif-results/x"):  # fmt: skip
        assert may_hold_results(f"https://{name}", address)
    for name in ("others.s3.amazonaws.com/x", "s3.amazonaws.com/others/ndif-results/x", "ndif-results.s3.amazonaws.com.example.org/x",
                 "ec2.us-east-1.amazonaws.com/x"):  # fmt: skip
        assert not may_hold_results(f"https://{name}", address)
    assert may_hold_results("http://127.0.0.1:9000/x", "http://127.0.0.1:8001")
    assert not may_hold_results("http://ndif-results.s3.amazonaws.com/x", address)
    assert not may_hold_results("https://169.254.169.254/latest", address)


@pytest.mark.parametrize("path", ["/request", "/result/job0"])
def test_redirects_and_packed_answers_are_not_followed(tiny, path):
    asked = []
    with standing_in() as other:
        with standing_in(pages={path: (200, gzip.compress(b"\0" * (1 << 26)))}) as server, pytest.raises(UserError):
            ask(tiny, server.address)
        asked += other.asked
    assert not asked


def test_an_endless_answer_is_cut(tiny):
    endless = standing_in(on_fetch=lambda _: (200, b"\0" * (SPARE_BYTES + (8 << 20))))
    with endless as server, pytest.raises(UserError, match="longer than"):
        ask(tiny, server.address)


def test_a_servers_words_steer_no_terminal(tiny):
    words = "\x1b[2J\x1b]0;owned\x07 \u202egnp.exe \x9b31m\r\nerror: pay"
    error = {"id": "x", "status": "ERROR", "description": words}
    with standing_in(on_poll=lambda *_: (200, error)) as server, pytest.raises(UserError) as said:
        ask(tiny, server.address)
    assert str(said.value).isprintable()
    assert cleaned(words).isprintable()


def test_a_key_goes_over_plain_http_to_this_machine_alone(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "secret")
    with pytest.raises(UserError, match="--insecure") as said:
        address_of("http://example.org")
    assert "secret" not in str(said.value)
    assert address_of("http://example.org", insecure=True) == "http://example.org"
    assert address_of("https://example.org") and address_of("http://127.0.0.1:1")


@pytest.mark.parametrize("value", [torch.ones(2, 4), torch.ones(3, 2, dtype=torch.long), [1.0], None, torch.ones(6)])
def test_another_shape_or_kind_is_refused(value):
    with pytest.raises(UserError, match="came back as"):
        expect(value, (3, 2), "activations")


SUMS = torch.zeros(1, 2, 65)  # of a group, in two layers of the tiny model
ODD_SUMS = [7, "sums", None, {}, [], [SUMS], SUMS, [SUMS, SUMS], [SUMS[0], SUMS, SUMS], [SUMS[0], SUMS.long()],
            [SUMS[0, :1], SUMS], [SUMS[0], SUMS.repeat(2, 1, 1)], [SUMS[0], [SUMS]], [SUMS[0] * torch.nan, SUMS],
            [SUMS[0], SUMS + torch.inf]]  # fmt: skip


@pytest.mark.parametrize("kept", ODD_SUMS, ids=range(len(ODD_SUMS)))
def test_sums_that_are_none_are_one_line(tiny, prompts_file, tmp_path, kept, case):
    with case(KIND), standing_in(result=lambda _: packed(kept=kept)) as server:
        far = replace(tiny, backend=Backend("remote", Client(server.address, 60.0, sandbox=SANDBOX)))
        with pytest.raises(UserError) as said:
            extract_sums(
                far, load_all([str(prompts_file)]), tmp_path, lambda rows: np.zeros(rows.height, int), layers=[0, 1]
            )
        assert "came back" in str(said.value) or "are not numbers" in str(said.value)
        assert not list(tmp_path.glob("*.safetensors"))


ONE = torch.zeros(2, 64)  # of two layers of the tiny model
GROUPS = ONE.repeat(2, 1, 1)  # harmful and benign rows of a fit
ODD_MOMENTS = [7, None, [], [ONE], ONE, [ONE, GROUPS], [ONE, GROUPS, GROUPS, GROUPS], [ONE, GROUPS, ONE], [ONE, GROUPS.long(), GROUPS],
               [GROUPS, GROUPS, GROUPS], [ONE * torch.nan, GROUPS, GROUPS], [ONE, GROUPS, GROUPS + torch.inf],
               [ONE, GROUPS, GROUPS]]  # fmt: skip  # the last is good, but no projections


@pytest.mark.parametrize("kept", ODD_MOMENTS, ids=range(len(ODD_MOMENTS)))
def test_moments_and_projections_that_are_none_are_one_line(tiny, prompts_file, tmp_path, kept, case):
    with case(KIND), standing_in(result=lambda _: packed(kept=kept)) as server:
        far = replace(tiny, backend=Backend("remote", Client(server.address, 60.0, sandbox=SANDBOX)))
        with pytest.raises(UserError) as said:
            extract_projections(
                far, load_all([str(prompts_file)]), tmp_path, lambda rows: fits_of(rows, "train", "train", 0)._replace(
                    members=np.ones((1, rows.height), bool)), together, mass_mean, layers=[0, 1]
            )  # fmt: skip
        told = str(said.value)
        assert "came back" in told or "are not numbers" in told or "were asked for" in told, told
        assert not list(tmp_path.glob("*.safetensors"))
