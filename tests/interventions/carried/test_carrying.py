"""Vectors carried away: files for other programs, and baked models, held against plain PyTorch."""

import json

import numpy as np
import pytest
import torch

from data.contract import FORMATS
from data.errors import UserError
from interventions.carried.bake import bake_ablate, bake_add
from interventions.carried.export import export
from interventions.methods.vectors import FORMAT, SteeringVectors
from interventions.model.prompt_format import encode
from interventions.reading.batches import pad_batch, pad_id
from interventions.steering.answer import Asked, answer
from interventions.steering.arms import Arm
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.texts import stop_tokens
from tests.made.models import make_tied
from tests.oracles import changed, changing, relative, reopened

LAYERS, WIDTH = [0, 1, 2, 3], 32


@pytest.fixture(scope="module")
def vectors(tiny_folder):
    random = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(len(LAYERS), WIDTH, generator=random) for name in ("weapons", "feelings")}
    metadata = {
        "format": FORMAT, "model": str(tiny_folder), "revision": "", "layers": json.dumps(LAYERS), "site": "resid_post",
        "method": "mean", "position": "last", "counts": json.dumps({"weapons": 7, "feelings": 9}),
        "residual_norms": json.dumps([2.0, 3.0, 4.0, 5.0]), "data": "d",
    }  # fmt: skip
    return SteeringVectors(tensors, metadata)


@pytest.fixture(scope="module")
def batch(tiny):
    texts = ["how do i kill a python process", "tell me", "write a poem for my friend please"]
    return pad_batch(encode(tiny.tokenizer, texts).ids, pad_id(tiny.tokenizer), tiny.device)


def hand_made(vectors, category, layer, strength):
    """s · ‖h‖ · v/‖v‖ in numpy, from the tensors and the metadata."""
    v = vectors.tensors[category][layer].numpy().astype(np.float64)
    return strength * json.loads(vectors.metadata["residual_norms"])[layer] * v / np.linalg.norm(v)


def test_gguf_reads_back_as_llama_cpp_wants_it(vectors, tmp_path):
    import gguf

    path = export(
        vectors, "gguf", tmp_path / "v.gguf", layers=[3, 1], category="weapons", strength=-0.5, unit="residual"
    )
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None and architecture.contents() == "controlvector"
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3"]
    for tensor, layer in zip(reader.tensors, (1, 3), strict=True):
        # What common_control_vector_load_one asks of each tensor: float32, one dimension, one width for all.
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.shape.tolist() == [WIDTH]
        assert np.allclose(tensor.data, hand_made(vectors, "weapons", layer, -0.5), rtol=1e-6)


def test_gguf_has_no_slot_for_layer_0(vectors, tmp_path):
    with pytest.raises(UserError, match="no slot for layer 0"):
        export(vectors, "gguf", tmp_path / "v.gguf", layers=[0])
    assert not list(tmp_path.iterdir())


def test_lm_eval_steers_as_this_tool_does(vectors, tiny, batch, tmp_path):
    path = export(vectors, "lm-eval", tmp_path / "v.pt", layers=[2], category="feelings", strength=0.7, unit="residual")
    plan = torch.load(path, weights_only=True)
    # What SteeredModel does with it: a hook on each named module of base_model that adds vector × coefficient.
    handles = []
    modules = dict(tiny.module.base_model.named_modules())
    for point, info in plan.items():
        assert info["action"] == "add" and info["bias"] is None and info["head_index"] is None
        added = info["steering_vector"] * float(info["steering_coefficient"])
        handles.append(modules[point].register_forward_hook(changing(lambda h, added=added: h + added)))
    try:
        with torch.no_grad():
            theirs = tiny.module(**batch).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    ours = steered(tiny, batch, 2, vectors.delta(2, "feelings", 0.7, "residual"))
    assert relative(theirs, ours) < 1e-5


@pytest.mark.slow
def test_lm_eval_itself_takes_the_file_and_steers(vectors, tiny, tiny_folder, batch, tmp_path):
    steered_model = pytest.importorskip("lm_eval.models.hf_steered").SteeredModel
    path = export(
        vectors, "lm-eval", tmp_path / "v.pt", layers=[1, 2], category="feelings", strength=0.7, unit="residual"
    )
    theirs = steered_model(pretrained=str(tiny_folder), steer_path=str(path), device="cpu", dtype="float32")
    # Its own scoring, without padding: the log-likelihood of a continuation.
    context, after = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist(), [7, 9, 11]
    ((found, _),) = theirs._loglikelihood_tokens([(("", ""), context, after)], disable_tqdm=True)
    ids = torch.tensor([context + after])
    deltas = {layer: vectors.delta(layer, "feelings", 0.7, "residual") for layer in (1, 2)}
    handles = [tiny.module.model.layers[layer].register_forward_hook(changing(lambda h, delta=delta: h + delta))
               for layer, delta in deltas.items()]  # fmt: skip
    try:
        with torch.no_grad():
            logits = tiny.module(input_ids=ids).logits[0].log_softmax(-1)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        plain = tiny.module(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(after) - 1)
    ours, unsteered = (
        sum(float(p[at, token]) for at, token in zip(places, after, strict=True)) for p in (logits, plain)
    )
    assert found == pytest.approx(ours, rel=1e-5) and abs(found - unsteered) > 1e-2


def test_pt_and_safetensors_hold_every_category(vectors, tmp_path):
    from safetensors import safe_open

    packed = torch.load(export(vectors, "pt", tmp_path / "v.pt", layers=[1, 2]), weights_only=True)
    assert packed["layers"] == [1, 2] and packed["metadata"]["strength_unit"] == "raw"
    with safe_open(export(vectors, "safetensors", tmp_path / "v.safetensors", layers=[1, 2]), "pt") as file:
        plain = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["layers"]) == [1, 2]
    for name, tensor in vectors.tensors.items():
        assert torch.equal(packed["vectors"][name], tensor[1:3]) and torch.equal(plain[name], tensor[1:3])


def test_one_category_or_their_mean(vectors, tmp_path):
    one = torch.load(export(vectors, "pt", tmp_path / "one.pt", layers=[1], category="weapons"), weights_only=True)
    assert list(one["vectors"]) == ["weapons"]
    mean = torch.load(export(vectors, "lm-eval", tmp_path / "mean.pt", layers=[1]), weights_only=True)
    wanted = (vectors.tensors["weapons"][1] + vectors.tensors["feelings"][1]) / 2
    assert torch.allclose(mean["layers.1"]["steering_vector"], wanted)


@pytest.mark.parametrize(
    ("format", "name", "options", "says"),
    [
        ("onnx", "v.onnx", {"layers": [1]}, "unknown format"),
        ("gguf", "v.bin", {"layers": [1]}, "ends in .gguf"),
        ("pt", "v.pt", {"layers": [9]}, "no vectors at layer 9"),
        ("pt", "v.pt", {"layers": [1], "category": "nothing"}, "no vector for category"),
    ],
)
def test_what_can_not_be_exported_is_said_in_one_line(vectors, tmp_path, format, name, options, says):
    with pytest.raises(UserError, match=says) as caught:
        export(vectors, format, tmp_path / name, **options)
    assert "\n" not in str(caught.value) and set(FORMATS) == {"gguf", "lm-eval", "pt", "safetensors"}


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_baked_addition_is_steering_at_every_position(vectors, tiny, batch, tmp_path, layer):
    delta = vectors.delta(layer, "weapons", 0.8, "residual")
    before = {name: tensor.clone() for name, tensor in tiny.module.state_dict().items()}
    folder = bake_add(tiny, tmp_path / "baked", layer, delta, {"category": "weapons"})
    baked = reopened(folder)
    wanted = steered(tiny, batch, layer, delta)
    with torch.no_grad():
        plain = tiny.module(**batch).logits[:, -1]
        got = baked(**batch).logits[:, -1]
    assert relative(got, wanted) < 1e-4 < relative(plain, wanted)
    biases = {name: float(t.abs().sum()) for name, t in baked.state_dict().items() if name.endswith("bias")}
    assert len(biases) == 3 * 4 and [name for name, size in biases.items() if size] == [
        f"model.layers.{layer}.mlp.down_proj.bias"
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.module.state_dict().items())
    record = json.loads((folder / "baked.json").read_text())
    assert (record["operation"], record["layer"], record["category"]) == ("add", layer, "weapons")


def test_a_baked_model_says_what_the_arm_says(vectors, tiny, batch, tmp_path):
    arm = Arm("fixed", "fixed", 2, "weapons", 0.8, unit="residual", scope="all")
    plan = plan_arm(tiny, arm, Tools(vectors), [{"category": None, "label": None}] * 3)
    ours = answer(tiny, batch, [plan.shipped], Asked(8, stops=sorted(stop_tokens(tiny)))).tokens[:, 0]
    baked = reopened(bake_add(tiny, tmp_path / "baked", 2, vectors.delta(2, "weapons", 0.8, "residual")))
    theirs = baked.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for mine, other in zip(ours.tolist(), theirs.tolist(), strict=True):
        end = next((at for at, token in enumerate(mine) if token in stop_tokens(tiny)), len(mine))
        assert mine[:end] == other[:end]


@pytest.mark.parametrize("tied", [False, True])
def test_a_baked_ablation_is_a_projection_at_every_write(vectors, tiny_folder, tmp_path, tied):
    model = open_again(make_tied(tiny_folder, tmp_path / "tied") if tied else tiny_folder)
    batch = pad_batch(encode(model.tokenizer, ["how do i kill a python process", "tell me"]).ids, 2, model.device)
    direction = vectors.at(2, "feelings")
    baked = reopened(bake_ablate(model, tmp_path / "baked", direction))
    unit = direction / direction.norm()
    writers = [model.module.get_input_embeddings()]
    writers += [part for block in model.module.model.layers for part in (block.self_attn.o_proj, block.mlp.down_proj)]
    handles = [part.register_forward_hook(changing(lambda h: h - (h @ unit)[..., None] * unit)) for part in writers]
    with torch.no_grad():
        wanted = model.module(**batch).logits
        for handle in handles:
            handle.remove()
        plain = model.module(**batch).logits
        out = baked(**batch, output_hidden_states=True)
    seen = batch["attention_mask"].bool()
    assert relative(out.logits[seen], wanted[seen]) < 1e-4 < relative(plain[seen], wanted[seen])
    assert max(float((h @ unit).abs().max()) for h in out.hidden_states[:-1]) < 1e-4
    assert torch.equal(baked.lm_head.weight, model.module.lm_head.weight)
    assert baked.config.tie_word_embeddings is False


def test_baking_keeps_what_is_not_its_own(vectors, tiny, tmp_path):
    delta = vectors.at(1, "weapons")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no baked model"):
        bake_add(tiny, tmp_path / "mine", 1, delta)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    for _ in range(2):  # its own it replaces
        bake_add(tiny, tmp_path / "baked", 1, delta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked", "mine"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model, out: bake_add(model, out, 9, torch.ones(WIDTH)), "has layers 0 to 3"),
        (lambda model, out: bake_add(model, out, 1, torch.ones(5)), "32 wide"),
        (lambda model, out: bake_ablate(model, out, torch.zeros(WIDTH)), "is zero"),
    ],
)
def test_what_can_not_be_baked_is_said_in_one_line(tiny, tmp_path, call, says):
    with pytest.raises(UserError, match=says):
        call(tiny, tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def steered(model, batch, layer, delta):
    """Next-token logits with a plain hook that adds to a block's output at every position (scope `all`)."""
    with changed(model, layer, lambda h: h + delta), torch.no_grad():
        return model.module(**batch).logits[:, -1]


def open_again(folder):
    from interventions import open_model

    return open_model(str(folder))
