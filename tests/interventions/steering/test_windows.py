"""Edits at several layers, as plain hooks at each of them on one row at a time would make them."""

from dataclasses import replace

import numpy as np
import pytest

from data import load_all
from data.contract import SCOPES, window
from data.errors import UserError
from interventions.backends.backend import Backend
from interventions.carried.bake import bake_ablate
from interventions.model.opening import open_model
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.sweep import grid
from interventions.steering.teacher_forcing import teacher_forced
from tests.made.tools import NOTHING_KNOWN, arms_of, probe_of, vectors_of
from tests.oracles import everywhere, forced_everywhere, last_logits, look, said

STEPS = 6


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).head(10)


@pytest.fixture(scope="module")
def tools(tiny_tuned):
    return Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned))


def adding(vectors, name, strength, layers):
    """One change a layer: the layer's own vector, at the whole strength."""
    steps = {layer: strength * vectors.at(layer, name) / vectors.at(layer, name).norm() for layer in layers}
    return {layer: (lambda h, v=step: h + v) for layer, step in steps.items()}


def ablating(vectors, layer, name, layers):
    """One direction, out of every layer."""
    unit = vectors.at(layer, name) / vectors.at(layer, name).norm()
    return dict.fromkeys(layers, lambda h: h - (h @ unit)[:, None] * unit)


def clamping(vectors, name, strength, layers):
    units = {layer: vectors.at(layer, name) / vectors.at(layer, name).norm() for layer in layers}
    return {at: (lambda h, u=u: h - (h @ u)[:, None] * u + strength * u) for at, u in units.items()}


def cases(vectors):
    fixed = [(f"fixed:category=weapons,layers=1-3,scope={scope}", adding(vectors, "weapons", -5.0, (1, 2, 3)), scope)
             for scope in SCOPES]  # fmt: skip
    return [
        *fixed,
        ("fixed:layers=0,3,strength=2", adding(vectors, "mean", 2.0, (0, 3)), "generated"),
        ("ablate:layers=0-3", ablating(vectors, 2, "mean", range(4)), "generated"),
        ("ablate:layer=1,layers=2-3,scope=prompt", ablating(vectors, 1, "mean", (2, 3)), "prompt"),
        (
            "fixed:operation=clamp,layers=2-3,strength=2,scope=all",
            clamping(vectors, "mean", 2.0, (2, 3)),
            "all",
        ),
    ]


@pytest.mark.parametrize("where", ["local", "simulate"])
def test_windows_are_plain_hooks_at_each_layer(tiny_tuned, prompts, tools, tmp_path, where):
    """In batches that share a prefill and a first step, against one row at a time."""
    model = replace(tiny_tuned, backend=Backend(where))
    wanted = cases(tools.vectors)
    arms = arms_of(["baseline", *(word for word, _, _ in wanted)])
    table = generate(model, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=STEPS)
    answers = {(row["arm"], row["id"]): row for row in table.to_dicts()}
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    for arm, (word, changes, scope) in zip(arms[1:], wanted, strict=True):
        for ids, row in zip(encoded.ids, prompts.to_dicts(), strict=True):
            tokens, _ = everywhere(model, ids, changes, scope, STEPS)
            got = answers[arm.name, row["id"]]
            assert (got["control_token"], got["response"]) == said(model, tokens), (word, row)
            assert got["layer"] == (arm.layer if arm.operation == "ablate" else None)


def test_gates_and_routes_choose_at_every_layer_of_a_window(tiny_tuned, prompts, tools, tmp_path):
    (arm,) = arms_of(["gated:benign=-6,harmful=4,layers=1-3"])
    table = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=[arm], max_new_tokens=STEPS)
    assert set(table["strength"]) == {-6, 4}
    encoded = encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    for ids, row in zip(encoded.ids, table.to_dicts(), strict=True):
        _, score = look(tiny_tuned, ids, tools.probe)
        assert row["strength"] == (4 if score >= 0.5 else -6)
        tokens, _ = everywhere(tiny_tuned, ids, adding(tools.vectors, row["vector"], row["strength"], (1, 2, 3)),
                               "generated", STEPS)  # fmt: skip
        assert (row["control_token"], row["response"]) == said(tiny_tuned, tokens)


def test_a_gate_may_leave_rows_unablated(tiny_tuned, prompts, tools, tmp_path):
    arms = arms_of(["baseline", "ablate:route=gated,benign=1,harmful=0,layers=all,scope=all"])
    table = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=STEPS)
    plain, ablated = (table.filter(kind=kind) for kind in ("baseline", "ablate"))
    same = (plain["response"] == ablated["response"]) & (plain["control_token"].eq_missing(ablated["control_token"]))
    assert same.filter(ablated["strength"] == 0).all()
    assert not same.filter(ablated["strength"] == 1).all()
    assert set(ablated["strength"]) == {0, 1}


def test_ablating_everywhere_is_orthogonalised_weights(tiny_tuned, prompts, tools, tmp_path):
    """arXiv 2406.11717, section 4.1: the same model, by edits and by weights."""
    (arm,) = arms_of(["ablate:layers=all,scope=all"])
    baked = open_model(str(bake_ablate(tiny_tuned, tmp_path / "baked", tools.vectors.at(2, "mean"))))
    one = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=[arm], max_new_tokens=STEPS)
    encoded = encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    shipped = plan_arm(tiny_tuned, arm, tools, [NOTHING_KNOWN] * len(encoded)).shipped
    batch = pad_batch(encoded.ids, pad_id(tiny_tuned.tokenizer))
    token = [[7]] * len(encoded)
    nll = teacher_forced(tiny_tuned, batch, token, [shipped], divergence=False).nll[:, 0, 0]
    for at, ids in enumerate(encoded.ids):
        logits = last_logits(baked, ids)
        assert float(nll[at]) == pytest.approx(float(logits.logsumexp(-1) - logits[7]), abs=1e-4)
        tokens, _ = everywhere(baked, ids, {}, "all", STEPS)
        assert (one["control_token"][at], one["response"][at]) == said(baked, tokens)


def test_teacher_forcing_edits_every_layer_of_a_window(tiny_tuned, prompts, tools):
    encoded = encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    wanted = cases(tools.vectors)
    given = [[7, 9, 11]] * len(encoded)
    plans = [
        plan_arm(tiny_tuned, arm, tools, [NOTHING_KNOWN] * len(encoded)).shipped
        for arm in arms_of([word for word, _, _ in wanted])
    ]
    found = teacher_forced(
        tiny_tuned, pad_batch(encoded.ids, pad_id(tiny_tuned.tokenizer)), given, plans, divergence=False
    )
    for row, ids in enumerate(encoded.ids):
        for at, (_, changes, scope) in enumerate(wanted):
            logs = forced_everywhere(tiny_tuned, ids, given[row], changes, scope)
            assert np.allclose(found.nll[row, at], -logs[np.arange(3), given[row]], atol=1e-4)


def test_windows_are_read_and_scaled():
    assert window("all", 4) == (0, 1, 2, 3)
    assert window("3,1-2", 30) == (1, 2, 3)
    assert window("8-19/32", 32) == tuple(range(8, 20))
    assert window("8-19/32", 30) == tuple(range(8, 19))
    for odd in ("", "x", "5-3", "3/0", "3/x"):
        with pytest.raises(ValueError):
            window(odd, 4)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("fixed:layers=two", "is not a list of layers"), ("lowrank:layers=1-2", "edits one layer"),
        ("logit-bias:layers=1-2", "edits none"), ("fixed:layer=1,layers=1-2", "names one layer already"),
        ("fixed:angle=30", "says nothing of fixed"), ("angular:category=weapons", "says nothing of angular"),
        ("angular:strength=2", "share of the way"), ("angular:adaptive=maybe", "adaptive is one of"),
        ("ablate:lambda=1", "says nothing of ablate"),
    ],
)  # fmt: skip
def test_keys_that_say_nothing_are_refused(word, reason):
    with pytest.raises(UserError, match=reason):
        arms_of([word])


def test_layers_beyond_the_model_or_the_vectors_are_named(tiny_tuned, tools):
    with pytest.raises(UserError, match="has layers 0 to 3"):
        plan_arm(tiny_tuned, arms_of(["fixed:layers=2-9"])[0], tools, [NOTHING_KNOWN])


def test_a_sweep_takes_a_window_as_one_setting_and_an_ablated_direction_from_each_layer():
    default = Arm("fixed", "fixed", 2)
    settings = grid(["fixed:layers=1-3", "ablate:layers=all", "angular", "affine"], default, [1, 3], None, None)
    found = {kind: [(arm.layer, arm.layers, round(arm.strength, 3)) for arm in settings if arm.kind == kind]
             for kind in ("fixed", "ablate", "angular", "affine")}  # fmt: skip
    assert [part[1] for part in found["fixed"]] == ["1-3"] * 5
    assert [part[:2] for part in found["ablate"]] == [(1, "all"), (3, "all")]
    assert [part[2] for part in found["angular"]] == [-0.333, -0.667, -1]
    assert [part[0] for part in found["affine"]] == [1] * 5 + [3] * 5
    assert 0 in {part[2] for part in found["affine"]}


def test_records_say_layers_where_they_are_given():
    (plain,), (windowed,) = parse_arms(["fixed"], Arm("x", "fixed", 2)), arms_of(["fixed:layers=1-3"])
    assert "layers" not in plain.record and windowed.record["layers"] == "1-3"


def test_what_arms_do_alike_is_found_at_several_layers(tiny_tuned, prompts, tools, tmp_path):
    words = ["fixed:layers=1-3,strength=3", "fixed:layers=1-3,strength=3.0", "fixed:layers=1-2,strength=3"]
    table = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms_of(words), max_new_tokens=STEPS)
    texts = [table.filter(arm=word)["response"].to_list() for word in words]
    assert texts[0] == texts[1] != texts[2]
