"""Baked models of many families: what transformers makes of the folder is plain hooks' steering, or there is no folder."""

import pytest
import torch

from data.errors import UserError
from interventions import open_model
from interventions.carried.bake import bake_ablate, bake_add
from interventions.model.prompt_format import encode
from tests.made.families import make_family
from tests.oracles import changing, relative, reopened, stream

ADDED = ["granite", "minicpm3", "gpt2", "phi"]  # by a multiplier, by two, by a bias that is there
NOT_ADDED = ["hyperclovax", "mistral"]
ABLATED = ["qwen2_moe", "gpt_oss", "llama4", "deepseek_v3", "opt"]
NOT_ABLATED = ["gemma2", "olmo2", "bloom"]
BLOCKS = {"gpt2": "transformer.h", "opt": "model.decoder.layers"}
LAYER, WIDTH = 2, 32
TEXTS = ["how do i kill a python process", "tell me", "write a poem for my friend please"]


@pytest.fixture
def family(tiny_tuned_folder, tmp_path):
    return lambda name: open_model(str(make_family(name, tiny_tuned_folder, tmp_path / name)))


def direction():
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))


def blocks(module, name):
    return module.get_submodule(BLOCKS.get(name, "model.layers"))


def logits(module, model):
    with torch.no_grad():
        return [module(input_ids=torch.tensor([ids])).logits[0] for ids in encode(model.tokenizer, TEXTS).ids]


@pytest.mark.parametrize("name", ADDED)
def test_an_added_vector_arrives_whole(family, name, tmp_path):
    model, delta = family(name), direction() / 3
    baked = reopened(bake_add(model, tmp_path / "baked", LAYER, delta))
    plain = logits(model.module, model)
    handle = blocks(model.module, name)[LAYER].register_forward_hook(changing(lambda h: h + delta))
    wanted = logits(model.module, model)
    handle.remove()
    for got, right, before in zip(logits(baked, model), wanted, plain, strict=True):
        assert relative(got, right) < 1e-4 < relative(before, right)


@pytest.mark.parametrize("name", ABLATED)
def test_nothing_of_an_ablated_direction_is_left_behind_any_block(family, name, tmp_path):
    model, unit = family(name), direction() / direction().norm()
    baked = reopened(bake_ablate(model, tmp_path / "baked", direction()))
    kept = {"plain": [], "baked": []}
    for kind, module in (("plain", model.module), ("baked", baked)):
        hooks = [block.register_forward_hook(lambda _m, _i, out, kept=kept[kind]: kept.append(stream(out)[0].clone()))
                 for block in blocks(module, name)]  # fmt: skip
        logits(module, model)
        for hook in hooks:
            hook.remove()
    before, after = (max(float(((h @ unit).abs() / h.norm(dim=-1)).max()) for h in kept[kind]) for kind in kept)
    assert after < 1e-5 < 0.1 < before


@pytest.mark.parametrize(
    ("name", "bake"), [*((name, "add") for name in NOT_ADDED), *((name, "ablate") for name in NOT_ABLATED)]
)
def test_what_would_not_be_steering_is_not_written(family, name, bake, tmp_path):
    model, out = family(name), tmp_path / "baked"
    with pytest.raises(UserError, match=r"nothing is written|no place for a bias") as told:
        bake_add(model, out, LAYER, direction()) if bake == "add" else bake_ablate(model, out, direction())
    assert "\n" not in str(told.value) and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_vector_that_is_none_is_not_baked(tiny, bad, tmp_path):
    for bake in (lambda: bake_add(tiny, tmp_path / "baked", 1, torch.full((WIDTH,), bad)),
                 lambda: bake_ablate(tiny, tmp_path / "baked", torch.full((WIDTH,), bad))):  # fmt: skip
        with pytest.raises(UserError, match=r"zero|not finite"):
            bake()
    assert not list(tmp_path.iterdir())
