"""Arms with tensors of their own, written down once more as plain hooks on one row at a time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data import load_all
from data.errors import UserError
from interventions.backends.backend import Backend
from interventions.carried.bake import bake_ablate
from interventions.carried.hooks import HookedArm
from interventions.model.opening import open_model
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id
from interventions.steering.generate import generate
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.teacher_forcing import teacher_forced
from interventions.steering.trace import trace
from tests.made.tools import NOTHING_KNOWN, OWN_KINDS, arms_of, methods_of, probe_of, vectors_of
from tests.oracles import control_ids, everywhere, forced_everywhere, last_logits, look, said

STEPS = 5
LAYERS = {"": (2,), "all": (0, 1, 2, 3), "1-2": (1, 2), "1-3": (1, 2, 3), "8-19/32": (1, 2)}


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).head(8)


@pytest.fixture(scope="module")
def tools(tiny_tuned):
    return Tools(vectors_of(tiny_tuned), probe_of(tiny_tuned), methods=methods_of(tiny_tuned))


@pytest.fixture(scope="module")
def orthogonal(tiny_tuned, tools, tmp_path_factory):
    """The model that can't write the false refusal's direction: weights, not edits."""
    own = tools.methods["false-refusal"]
    w, r = (own.tensors[name][2].double() for name in ("false_refusal", "refusal"))
    folder = tmp_path_factory.mktemp("orthogonal") / "baked"
    return open_model(str(bake_ablate(tiny_tuned, folder, (w - (w @ r) / (r @ r) * r).float())))


def changes_of(arm, tools, vector, strength):
    """What the arm does at each layer, as a function of (positions, d_model) whose last position is the prompt's last."""
    own, layers = tools.methods[arm.kind].tensors, LAYERS[arm.layers]
    if arm.kind == "angular":
        return dict.fromkeys(layers, lambda h: turned(h, own["plane"], strength, arm.angle, arm.adaptive == "yes"))
    return {layer: change(arm, tools, vector, strength, layer) for layer in layers}


def change(arm, tools, vector, strength, layer):
    own = {name: tensor[layer] for name, tensor in tools.methods[arm.kind].tensors.items()}
    if arm.kind == "affine":
        v = tools.vectors.at(layer, vector)
        unit = v / v.norm()
        step = strength * (unit if arm.unit == "unit" else v) + (own["mean"] @ unit) * unit
        return lambda h: h - (h @ unit)[:, None] * unit + step
    if arm.kind == "alphasteer":
        a = own["towards" if strength > 0 else "away"]
        return lambda h: h + strength * (h[-1] @ a) * own["refusal"]
    w, r = (tools.methods[arm.kind].tensors[name][arm.layer] for name in ("false_refusal", "refusal"))
    w = w - arm.partial * (w @ r) / (r @ r) * r
    w = w / w.norm()
    return lambda h: h - (h @ w)[:, None] * w if strength else h


def turned(h, plane, strength, degrees, adaptive):
    """Rotation by complex numbers."""
    z: Any = np.asarray(h.double() @ plane.double().T) @ np.array([1, 1j])
    goal = np.exp(1j * np.radians(degrees)) * np.sign(strength)
    new: Any = z * np.exp(1j * abs(strength) * np.angle(goal / z)) if strength else z
    new = np.where(adaptive & (z.real <= 0), z, new)
    moved = torch.from_numpy(np.stack([(new - z).real, (new - z).imag], axis=-1))
    return h + (moved @ plane.double()).float()


def vector_of(model, arm, ids):
    logits = last_logits(model, ids)
    control = control_ids(model)
    names = [name for name in control if name != "respond"]
    return arm.category if arm.route == "fixed" else max(names, key=lambda name: float(logits[control[name]]))


@pytest.mark.parametrize("where", ["local", "simulate"])
def test_arms_are_plain_hooks(tiny_tuned, prompts, tools, orthogonal, tmp_path, where):
    """All at once, in batches that share what they can."""
    model = replace(tiny_tuned, backend=Backend(where))
    arms = arms_of(["baseline", *OWN_KINDS])
    table = generate(model, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=STEPS)
    answers = {(row["arm"], row["id"]): row for row in table.to_dicts()}
    encoded = encode(model.tokenizer, prompts["prompt"].to_list())
    for arm in arms[1:]:
        for ids, row in zip(encoded.ids, prompts.to_dicts(), strict=True):
            got, vector = answers[arm.name, row["id"]], vector_of(model, arm, ids)
            if arm.kind == "false-refusal" and arm.layers == "all":
                tokens, _ = everywhere(orthogonal, ids, {}, "all", STEPS)
            else:
                tokens, _ = everywhere(model, ids, changes_of(arm, tools, vector, arm.strength), arm.scope, STEPS)
            assert (got["control_token"], got["response"]) == said(model, tokens), (arm.name, row)
            assert got["vector"] == (vector if arm.kind == "affine" else None)
            assert got["strength"] == arm.strength
    unsteered = [answers["baseline", row["id"]]["response"] for row in prompts.to_dicts()]
    for arm in arms[1:]:
        assert [answers[arm.name, row["id"]]["response"] for row in prompts.to_dicts()] != unsteered, arm.name


def test_a_batch_answers_as_one_row_at_a_time(tiny_tuned, prompts, tools, tmp_path):
    arms = arms_of(OWN_KINDS)
    together = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=arms, max_new_tokens=STEPS)
    alone = generate(
        tiny_tuned, prompts, tools, tmp_path / "b.parquet", arms=arms, max_new_tokens=STEPS, batch_tokens=1
    )
    columns = ["arm", "id", "response", "control_token", "vector", "strength", "finish", "new_tokens"]
    assert together.select(columns).equals(alone.select(columns))
    assert ((together["refusal_probability"] - alone["refusal_probability"]).abs() < 1e-4).all()


GATED = [
    "affine:route=gated", "false-refusal:route=gated,layers=1-2", "alphasteer:route=gated,benign=-4,harmful=3",
    "angular:route=gated,harmful=0",
]  # fmt: skip


@pytest.mark.parametrize("word", GATED)
def test_a_gate_decides_the_strength(tiny_tuned, prompts, tools, tmp_path, word):
    (arm,) = arms_of([word])
    defaults = {"affine": (0, 1), "false-refusal": (1, 0), "alphasteer": (-4, 3), "angular": (-1, 0)}[arm.kind]
    table = generate(tiny_tuned, prompts, tools, tmp_path / "a.parquet", arms=[arm], max_new_tokens=STEPS)
    encoded = encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    assert table["strength"].n_unique() == 2
    for ids, row in zip(encoded.ids, table.to_dicts(), strict=True):
        _, score = look(tiny_tuned, ids, tools.probe)
        assert row["strength"] == defaults[score >= 0.5]
        vector = vector_of(tiny_tuned, arm, ids)
        tokens, _ = everywhere(tiny_tuned, ids, changes_of(arm, tools, vector, row["strength"]), arm.scope, STEPS)
        assert (row["control_token"], row["response"]) == said(tiny_tuned, tokens)


def test_given_tokens_are_as_probable_as_behind_plain_hooks(tiny_tuned, prompts, tools):
    """Teacher forcing, and hooks in somebody else's forward pass, with padding on the right."""
    encoded, given = encode(tiny_tuned.tokenizer, prompts["prompt"].to_list()), [7, 9, 11]
    arms = [arm for arm in arms_of(OWN_KINDS) if arm.route == "fixed" and arm.name != "false-refusal"]
    plans = [plan_arm(tiny_tuned, arm, tools, [NOTHING_KNOWN] * len(encoded)) for arm in arms]
    batch = pad_batch(encoded.ids, pad_id(tiny_tuned.tokenizer))
    found = teacher_forced(
        tiny_tuned, batch, [given] * len(encoded), [plan.shipped for plan in plans], divergence=False
    )
    rows = [[*ids, *given[:-1]] for ids in encoded.ids]
    padded = torch.tensor([row + [2] * (max(map(len, rows)) - len(row)) for row in rows])
    ends = torch.tensor([len(ids) - 1 for ids in encoded.ids])
    for at, arm in enumerate(arms):
        hooked = HookedArm(tiny_tuned, plan_arm(tiny_tuned, arm, tools, [{}]), tools)
        with hooked.steering(hooked.decide(encoded.ids), ends), torch.no_grad():
            logs = tiny_tuned.module(input_ids=padded).logits.double().log_softmax(-1)
        for row, ids in enumerate(encoded.ids):
            wanted = forced_everywhere(
                tiny_tuned, ids, given, changes_of(arm, tools, arm.category, arm.strength), arm.scope
            )
            wanted = -wanted[np.arange(3), given]
            theirs = -logs[row, ends[row] + torch.arange(3), given]
            assert np.allclose(found.nll[row, at], wanted, atol=2e-4), (arm.name, row)
            assert np.allclose(theirs, wanted, atol=2e-4), (arm.name, row)


def test_a_trace_shows_them(tiny_tuned, prompts, tools, tmp_path):
    for word in ("affine:strength=0.5", "angular", "alphasteer:strength=4", "false-refusal"):
        (arm,) = arms_of([word])
        table = trace(tiny_tuned, prompts, tools, tmp_path, arms=[arm], max_new_tokens=2).table
        assert (table["kl"] > 1e-6).all() and table["strength"].to_list() == [arm.strength] * prompts.height


def test_what_an_arm_lacks_or_is_not_fitted_for_is_said(tiny_tuned, tiny, tools):
    def plan(model, word, tools):
        return plan_arm(model, arms_of([word])[0], tools, [NOTHING_KNOWN])

    for kind in ("affine", "angular", "alphasteer", "false-refusal"):
        with pytest.raises(UserError, match=f"run `vectors --method {kind}` first"):
            plan(tiny_tuned, kind, Tools(tools.vectors))
    with pytest.raises(UserError, match="are those of"):
        Tools(vectors_of(tiny), methods=tools.methods).check(tiny)
    gated = Tools(vectors_of(tiny), probe_of(tiny), methods=methods_of(tiny))
    assert plan(tiny, "angular:route=gated", gated).shipped.gate == 0  # no refusal tokens are needed to gate it
