"""Activation files are read in parts, exactly, and what is damaged is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from data.errors import UserError
from data.store.activations import Activations
from tests.made.activation_files import prompt_rows, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    values = np.random.default_rng(0).standard_normal((23, 3, 5))
    return write(tmp_path_factory.mktemp("made"), values, prompt_rows(23), layers=[2, 5, 9])


@given(rows_a_slice=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_slices_are_the_file(made, rows_a_slice):
    whole = load_file(made)["activations"]
    parts = list(Activations.open(made).slices(most_bytes=rows_a_slice * 3 * 5 * 4))
    assert all(len(block) <= rows_a_slice for _, block in parts)
    assert [start for start, _ in parts] == list(range(0, 23, rows_a_slice))
    assert np.array_equal(np.concatenate([block for _, block in parts]), whole)


@given(rows=st.lists(st.integers(0, 22), max_size=30), layer=st.sampled_from([2, 5, 9]))
@settings(max_examples=30, deadline=None)
def test_one_layer_of_some_rows_is_the_files(made, rows, layer):
    whole = load_file(made)["activations"]
    assert np.array_equal(Activations.open(made).layer(layer, rows), whole[rows, [2, 5, 9].index(layer)])


def test_a_layer_that_is_not_there_is_said(made):
    with pytest.raises(UserError, match="layer 3; they are at 2, 5, 9"):
        Activations.open(made).layer(3)


@pytest.mark.parametrize("damage", ["cut", "rows", "type", "layers", "two", "no metadata"])
def test_a_damaged_file_is_said(made, tmp_path, damage):
    values, rows = load_file(made)["activations"], prompt_rows(23)
    path = write(tmp_path, values, rows[:22] if damage == "rows" else rows, layers=[1] if damage == "layers" else None)
    if damage == "cut":
        path.write_bytes(made.read_bytes()[:-8])
    if damage in ("type", "two"):
        tensors = {"activations": values.astype(np.float16 if damage == "type" else np.float32)}
        save_file(tensors | ({"more": values} if damage == "two" else {}), path, {"layers": "[0, 1, 2]"})
    if damage == "no metadata":
        save_file({"activations": values}, path)
    with pytest.raises(UserError, match="run extract again"):
        Activations.open(path)


@pytest.mark.parametrize("layers", ["3", '"012"', "[0, 1, -1]", "[0, 1, 1]", "[0, 2, 1]", "[0, 1, 2.5]", "null", "{}"])
def test_layers_that_are_none_are_said(made, tmp_path, layers):
    path = write(tmp_path, load_file(made)["activations"], prompt_rows(23))
    save_file({"activations": load_file(made)["activations"]}, path, {"layers": layers})
    with pytest.raises(UserError, match="run extract again"):
        Activations.open(path)
