"""Vectors are the formula, and a file that does not fit is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data import load_all
from data.errors import UserError
from interventions import SteeringVectors, extract
from interventions.methods.fit import fit_vectors


@pytest.fixture(scope="module")
def activations(tiny, prompts_file, tmp_path_factory):
    return extract(tiny, load_all([str(prompts_file)]), tmp_path_factory.mktemp("act"))


def oracle(activations, prompts_file):
    x = load_file(activations)["activations"].numpy().astype(np.float64)
    rows = load_all([str(prompts_file)])
    label, category = np.array(rows["label"].to_list()), np.array(rows["category"].to_list(), dtype=object)
    benign = x[label == "benign"].mean(0)
    return {c: x[(label == "harmful") & (category == c)].mean(0) - benign for c in ("feelings", "weapons")}, x


def test_difference_in_means_is_numpys(activations, prompts_file):
    vectors = fit_vectors(activations)
    wanted, x = oracle(activations, prompts_file)
    assert vectors.categories == ["feelings", "weapons"]
    for name, value in wanted.items():
        assert np.allclose(vectors.tensors[name].numpy(), value, rtol=1e-6, atol=1e-7)
    assert json.loads(vectors.metadata["counts"]) == {"feelings": 10, "weapons": 10}
    assert np.allclose(json.loads(vectors.metadata["residual_norms"]), np.linalg.norm(x, axis=-1).mean(0))


def test_published_thresholding(activations, prompts_file):
    wanted, _ = oracle(activations, prompts_file)
    vectors = fit_vectors(activations, tau=0.05, top_k=5, normalize=True)
    for name, value in wanted.items():
        for layer in range(4):
            v = np.where(np.abs(value[layer]) < 0.05, 0, value[layer])
            v[np.argsort(-np.abs(v))[5:]] = 0
            assert np.allclose(vectors.tensors[name][layer].numpy(), v / np.linalg.norm(v), atol=1e-6)


def test_strength_units(activations):
    vectors = fit_vectors(activations)
    v = vectors.at(2, "weapons").double()
    norm = json.loads(vectors.metadata["residual_norms"])[2]
    assert torch.allclose(vectors.delta(2, "weapons", -4, "raw").double(), -4 * v)
    assert float(vectors.delta(2, "weapons", -4, "unit").norm()) == pytest.approx(4)
    assert float(vectors.delta(2, "weapons", 0.5, "residual").norm()) == pytest.approx(0.5 * norm, rel=1e-5)
    both = torch.stack([vectors.at(2, "weapons"), vectors.at(2, "feelings")]).mean(0)
    assert torch.allclose(vectors.at(2), both)


def test_a_file_comes_back_as_it_was_saved(activations, tmp_path):
    vectors = fit_vectors(activations)
    vectors.save(tmp_path / "v.safetensors")
    back = SteeringVectors.load(tmp_path / "v.safetensors")
    assert back.metadata == vectors.metadata and back.categories == vectors.categories
    assert all(torch.equal(back.tensors[name], vectors.tensors[name]) for name in back.tensors)


def test_what_does_not_fit_is_said(activations, tiny, tmp_path):
    vectors = fit_vectors(activations)
    vectors.check(tiny)
    for change, word in [
        ({"site": "attn"}, "attn"),
        ({"model": "other"}, "other"),
        ({"layers": "[0,1,2,9]"}, "layer 9"),
    ]:
        with pytest.raises(UserError, match=word):
            replace(vectors, metadata=vectors.metadata | change).check(tiny)
    with pytest.raises(UserError, match="7 wide"):
        replace(vectors, tensors={"weapons": torch.zeros(4, 7)}).check(tiny)
    save_file({"weapons": torch.zeros(4, 7)}, tmp_path / "bare.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04junk")
    for name in ("bare", "pickle", "absent"):
        with pytest.raises(UserError):
            SteeringVectors.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("layers", text)
            for text in ('"abcd"', "[0,1,2,-1]", "[0,0,0,0]", "[3,2,1,0]", "4", "[0,1,2]", "[0,1,2,3.0]")
        ),
        *(("layers", text) for text in ("[true,2,3,4]", "null", "[", "[" * 100_000)),
        *(("residual_norms", text) for text in ("[1,1,1,NaN]", "[1,1,1]", "{}", '["1","1","1","1"]', "[1,1,1,0]")),
        *(("residual_norms", text) for text in ("[1,1,1,Infinity]", "[1,1,1,-1]", "[1,1,1,null]", "3")),
        ("residual_norms", f"[1,1,1,1{'0' * 400}]"),
        *(
            ("counts", text)
            for text in ('["feelings", "weapons"]', '{"feelings": "1", "weapons": 2}', '{"weapons": 2}')
        ),
    ],
)
def test_metadata_that_is_none_is_said_in_one_line(activations, tmp_path, name, value):
    path, vectors = tmp_path / "v.safetensors", fit_vectors(activations)
    replace(vectors, metadata=vectors.metadata | {name: value}).save(path)
    with pytest.raises(UserError) as caught:
        SteeringVectors.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_category_takes_the_name_of_the_mean_of_all(activations, tiny, prompts_file, tmp_path):
    prompts = load_all([str(prompts_file)])
    named = prompts.with_columns(prompts["category"].replace("weapons", "mean"))
    with pytest.raises(UserError, match="can't be called 'mean'"):
        fit_vectors(extract(tiny, named, tmp_path))
    vectors = fit_vectors(activations)
    tensors = {"feelings": vectors.tensors["feelings"], "mean": vectors.tensors["weapons"]}
    counts = json.dumps({"feelings": 10, "mean": 10})
    SteeringVectors(tensors, vectors.metadata | {"counts": counts}).save(tmp_path / "v.safetensors")
    with pytest.raises(UserError, match="can't be called 'mean'"):
        SteeringVectors.load(tmp_path / "v.safetensors")
