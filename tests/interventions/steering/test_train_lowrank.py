"""Training a low-rank map is plain autograd's, step by step, through every backend, whole or killed."""

import json
from dataclasses import replace

import pytest
import torch

from data import load_all
from data.errors import UserError
from interventions.backends.backend import open_backend
from interventions.methods.lowrank import FORMAT, LowRank
from interventions.model.control_tokens import control_tokens
from interventions.model.prompt_format import encode
from interventions.steering import train_lowrank as lowrank_training
from interventions.steering.train_lowrank import LabelledBatches, labelled_batches, steps, train_lowrank
from tests.made.tools import vectors_of

RANK, LAYER = 2, 2


@pytest.fixture(scope="module")
def prompts(prompts_file):
    """The first 24 to train on, 16 to hold out; one row is a single word."""
    import polars as pl

    rows = load_all([str(prompts_file)])
    split = pl.Series("split", ["train"] * 24 + ["validation"] * 16)
    return rows.with_columns(split)


def start_of(model, mode, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    metadata = {
        "format": FORMAT,
        "model": model.name,
        "revision": "",
        "site": "resid_post",
        "layer": str(LAYER),
        "mode": mode,
    }
    width = model.d_model
    return LowRank(draw(width, RANK), draw(width, RANK) / 6, draw(RANK), draw(width), metadata)


def parameters_of(low):
    return {name: getattr(low, name) for name in ("U", "V", "z", "mean")}


def plain_loss(model, rows, low, mode, parameters):
    """The formula, row by row: a hand-written hook, no batch, no padding, no cache."""
    tokens = control_tokens(model.tokenizer)
    targets = [tokens["weapons"], tokens["feelings"]]

    def logits(ids, steered):
        def hook(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            h = hidden[:, -1:]
            up, down, z = (parameters.get(name, getattr(low, name)) for name in ("U", "V", "z"))
            change = up @ z if mode == "fixed" else ((h - low.mean) @ down) @ up.T
            new = torch.cat([hidden[:, :-1], h + change], dim=1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = model.module.model.layers[LAYER].register_forward_hook(hook) if steered else None
        found = model.module(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        if handle is not None:
            handle.remove()
        return found

    encoded = encode(model.tokenizer, rows["prompt"].to_list()).ids
    harmful, benign = [], []
    for ids, label in zip(encoded, rows["label"], strict=True):
        q = logits(ids, True)
        if label == "harmful":
            harmful.append(-q[targets].logsumexp(-1))
        else:
            p = logits(ids, False).detach()
            benign.append((p.exp() * (p - q)).sum())
    return (
        torch.stack(harmful).mean() + torch.stack(benign).mean(),
        torch.stack(harmful).sum(),
        torch.stack(benign).sum(),
    )


@pytest.mark.parametrize("mode", ["fixed", "input"])
def test_loss_and_gradients_are_plain_autograds(tiny_tuned, prompts, mode):
    rows = prompts.head(20)
    low = start_of(tiny_tuned, mode)
    names = lowrank_training.TRAINED[mode]
    leaves = {name: getattr(low, name).clone().requires_grad_(True) for name in names}
    loss, harmful, benign = plain_loss(tiny_tuned, rows, low, mode, leaves)
    wanted = dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    tokens = control_tokens(tiny_tuned.tokenizer)
    whole = labelled_batches(tiny_tuned, rows, [tokens["weapons"], tokens["feelings"]], 4096)
    assert len(whole.batches) == 1
    rates = dict.fromkeys(names, 0.1)
    for backend in ("local", "simulate"):
        model = replace(tiny_tuned, backend=open_backend(backend))
        found = steps(model, LAYER, parameters_of(low), whole, [0], rates=rates, learn=True)
        assert found["sums"][:2] == pytest.approx([float(harmful.detach()), float(benign.detach())], rel=1e-5)
        for name in names:
            error = (found["gradients"][name] - wanted[name]).norm() / wanted[name].norm()
            assert error < 1e-5
        optimizer = torch.optim.AdamW([leaves[name].clone().detach().requires_grad_(True) for name in names], lr=0.1)
        for parameter, name in zip(optimizer.param_groups[0]["params"], names, strict=True):
            parameter.grad = wanted[name]
        optimizer.step()
        for parameter, name in zip(optimizer.param_groups[0]["params"], names, strict=True):
            assert torch.allclose(found["tensors"][name], parameter, atol=1e-5)


def test_small_batches_give_the_whole_lessons_gradient(tiny_tuned, prompts):
    low, tokens = start_of(tiny_tuned, "fixed"), control_tokens(tiny_tuned.tokenizer)
    targets = [tokens["weapons"], tokens["feelings"]]
    whole, parts = (labelled_batches(tiny_tuned, prompts.head(20), targets, size) for size in (4096, 40))
    assert len(parts.batches) > 3
    options = {"rates": {"U": 0.0, "z": 0.0}, "learn": True}
    wanted = steps(tiny_tuned, LAYER, parameters_of(low), whole, [0], **options)["gradients"]
    each = [
        steps(tiny_tuned, LAYER, parameters_of(low), parts, [at], **options)["gradients"]
        for at in range(len(parts.batches))
    ]
    for name in wanted:
        mean = torch.stack([one[name] for one in each]).mean(0)
        assert (mean - wanted[name]).norm() < 1e-5 * wanted[name].norm()


def test_measuring_changes_nothing(tiny_tuned, prompts):
    low, tokens = start_of(tiny_tuned, "input"), control_tokens(tiny_tuned.tokenizer)
    whole = labelled_batches(tiny_tuned, prompts.head(20), [tokens["weapons"]], 60)
    rates, numbers = {"U": 0.1, "V": 0.1}, list(range(len(whole.batches)))
    one = steps(tiny_tuned, LAYER, parameters_of(low), whole, numbers, rates=rates, learn=False)
    assert torch.equal(one["tensors"]["U"], low.U) and not one["gradients"]
    assert one["sums"] == steps(tiny_tuned, LAYER, parameters_of(low), whole, numbers, rates=rates, learn=False)["sums"]


OPTIONS = {"epochs": 3, "rate": 0.05, "batch_tokens": 60}


def trained(model, prompts, folder, mode="fixed", **options):
    return train_lowrank(model, start_of(model, mode), vectors_of(model), prompts, folder, **(OPTIONS | options))


@pytest.mark.parametrize("mode", ["fixed", "input"])
def test_training_lowers_the_loss_and_keeps_the_best_epoch(tiny_tuned, prompts, tmp_path, mode):
    low, history = trained(tiny_tuned, prompts, tmp_path, mode)
    loss = {epoch: sum(rows["loss"]) for (epoch,), rows in history.filter(split="held-out").group_by("epoch")}
    best = int(low.metadata["kept_epoch"])
    assert best == min(loss, key=lambda epoch: loss[epoch]) and loss[best] < loss[0]
    assert history.filter("kept")["epoch"].unique().to_list() == [best]
    assert history.filter(split="train", label="harmful", epoch=1)["n"].item() == 12
    assert history.filter(split="held-out", label="benign", epoch=0)["n"].item() == 8
    assert not list(tmp_path.iterdir())
    rows = prompts.filter(split="validation")
    _, harmful, benign = plain_loss(tiny_tuned, rows, low, mode, {})
    said = history.filter(split="held-out", epoch=best)
    assert said.filter(label="harmful")["loss"].item() == pytest.approx(float(harmful.detach()) / 8, rel=1e-4)
    assert said.filter(label="benign")["loss"].item() == pytest.approx(float(benign.detach()) / 8, rel=1e-4)


def test_one_seed_one_map_and_a_killed_run_ends_the_same(tiny_tuned, prompts, tmp_path, monkeypatch):
    one, history = trained(tiny_tuned, prompts, tmp_path / "one")
    two, _ = trained(tiny_tuned, prompts, tmp_path / "two")
    other, _ = trained(tiny_tuned, prompts, tmp_path / "three", seed=9)
    assert torch.equal(one.U, two.U) and torch.equal(one.z, two.z) and not torch.equal(one.U, other.U)
    monkeypatch.setattr(lowrank_training, "BATCHES_A_JOB", 2)
    calls, real = [], lowrank_training.steps

    def dies(*words, **options):
        calls.append(options["learn"])
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*words, **options)

    monkeypatch.setattr(lowrank_training, "steps", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_tuned, prompts, tmp_path / "killed")
    again, late = trained(tiny_tuned, prompts, tmp_path / "killed")
    jobs = -(-len(labelled_batches(tiny_tuned, prompts.head(24), [0], 60).batches) // 2)
    assert calls.count(True) <= 3 * jobs + 1
    assert torch.equal(again.U, one.U) and torch.equal(again.z, one.z) and again.metadata == one.metadata
    assert late.equals(history) or (late["loss"] - history["loss"]).abs().max() < 1e-12  # type: ignore[operator]


def test_a_simulated_server_trains_the_same_map(tiny_tuned, prompts, tmp_path):
    here, history = trained(tiny_tuned, prompts, tmp_path / "here", epochs=1)
    there, same = trained(replace(tiny_tuned, backend=open_backend("simulate")), prompts, tmp_path / "there", epochs=1)
    assert torch.equal(here.U, there.U) and torch.equal(here.z, there.z) and history.equals(same)


def test_without_held_out_rows_the_last_epoch_is_kept(tiny_tuned, prompts, tmp_path):
    low, history = trained(tiny_tuned, prompts.head(24), tmp_path)
    assert low.metadata["kept_epoch"] == "3" and set(history["split"]) == {"train"}


def test_a_prompt_of_one_token_trains_too(tiny_tuned):
    low = start_of(tiny_tuned, "fixed")
    batch = {"input_ids": torch.tensor([[5], [7]]), "attention_mask": torch.ones(2, 1, dtype=torch.long),
             "position_ids": torch.zeros(2, 1, dtype=torch.long)}  # fmt: skip
    single = LabelledBatches([batch], [torch.tensor([True, False])], torch.tensor([9]))
    found = steps(tiny_tuned, LAYER, parameters_of(low), single, [0], rates={"U": 0.1, "z": 0.1}, learn=True)
    assert all(torch.isfinite(value).all() for value in found["gradients"].values()) and found["sums"][0] > 0


def test_what_does_not_fit_is_said(tiny, tiny_tuned, prompts, tmp_path):
    with pytest.raises(UserError, match="no refusal tokens"):
        trained(tiny, prompts, tmp_path)
    with pytest.raises(UserError, match="harmful and benign rows"):
        trained(tiny_tuned, prompts.filter(label="benign"), tmp_path)
    other = start_of(tiny_tuned, "fixed")
    other = replace(other, metadata=other.metadata | {"model": "other"})
    with pytest.raises(UserError, match="those of 'other'"):
        train_lowrank(tiny_tuned, other, vectors_of(tiny_tuned), prompts, tmp_path)
    assert json.loads(vectors_of(tiny).metadata["counts"])
