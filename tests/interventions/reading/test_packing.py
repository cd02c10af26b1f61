"""What rows share is computed once, and gives what each row alone would give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interventions.reading.batches import pad_batch
from interventions.reading.packing import branches, common_opening, pack_batch
from interventions.reading.residual import read_residual
from tests.oracles import close, hooked

PAD = 2
token = st.integers(3, 24)
row = st.lists(token, min_size=1, max_size=9)


def computed(model):
    """Counts the tokens that go through the first block, pass by pass."""
    counts = []
    block = model.module.get_submodule("model.layers")[0]
    handle = block.register_forward_pre_hook(lambda _module, inputs: counts.append(inputs[0][..., 0].numel()))
    return counts, handle


@given(st.lists(row, max_size=12), st.integers(0, 9), st.integers(0, 20))
def test_an_opening_is_what_all_rows_begin_with(rows, length, copies):
    shared = [5] * length
    rows = [shared + row for row in rows for _ in range(copies)]
    found = common_opening(rows)
    assert all(row[:found] == rows[0][:found] and len(row) > found for row in rows)
    longest = 0
    while rows and all(len(row) > longest + 1 and row[longest] == rows[0][longest] for row in rows):
        longest += 1
    assert found == (longest if (len(rows) - 1) * longest > 32 else 0)
    assert common_opening(rows, most=1) in (0, 1)


@given(st.lists(row, min_size=1, max_size=6), st.integers(0, 4))
def test_padding_behind_an_opening_moves_no_position(rows, length):
    rows = [[9] * length + row for row in rows]
    batch = pad_batch(rows, 0, opening=length)
    assert batch["attention_mask"][:, :length].all() and (batch["input_ids"][:, :length] == 9).all()
    for at, ids in enumerate(rows):
        real = batch["attention_mask"][at].bool()
        assert batch["input_ids"][at][real].tolist() == ids and bool(real[-1])
        assert batch["position_ids"][at][real].tolist() == list(range(len(ids)))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_and_endings_read_together_are_those_read_alone(tiny, data):
    """Any opening, rows of any lengths, any set of endings: one that begins another, equal ones, none at all."""
    opening = data.draw(st.lists(token, max_size=6))
    rows = [opening + own for own in data.draw(st.lists(row, min_size=1, max_size=4))]
    endings = data.draw(st.lists(st.lists(st.integers(3, 5), max_size=4), min_size=1, max_size=4))
    batch, ends = pack_batch(rows, endings, PAD, opening=len(opening))
    (got,) = read_residual(tiny, [batch], [1, 3], ends=[ends], opening=len(opening))
    alone = [hooked(tiny, ids + ending, [1, 3])[:, -1] for ids in rows for ending in endings]
    assert close(got, torch.stack(alone))


def test_every_shared_token_is_computed_once(tiny):
    opening, rows = [5] * 10, [[6, 7], [8], [9, 10, 11]]
    endings = [[4, 12, 13], [4, 12], [4, 14], [15]]
    batch, ends = pack_batch([opening + own for own in rows], endings, PAD, opening=10)
    counts, handle = computed(tiny)
    read_residual(tiny, [batch], [0], ends=[ends], opening=10)
    handle.remove()
    tree = {(4,), (4, 12), (4, 12, 13), (4, 14), (15,)}
    assert set(branches(endings)) == tree
    assert counts == [10, 3 * (3 + len(tree))]


def test_batches_of_a_job_share_one_opening(tiny):
    rows = [[5, 6, 7, 8, 9, own] for own in range(10, 16)]
    counts, handle = computed(tiny)
    got = read_residual(
        tiny, [pad_batch(rows[:2], PAD, opening=5), pad_batch(rows[2:], PAD, opening=5)], [2], opening=5
    )
    handle.remove()
    assert counts == [5, 2, 4]
    assert close(torch.cat(got), torch.stack([hooked(tiny, ids, [2])[:, -1] for ids in rows]))


@pytest.mark.parametrize("kinds", [["full_attention"] * 3 + ["sliding_attention"], None])
def test_layers_that_see_a_window_alone_share_nothing(tiny, kinds, monkeypatch):
    config = tiny.module.config
    monkeypatch.setattr(config, "layer_types", kinds, raising=False)
    monkeypatch.setattr(config, "sliding_window", None if kinds else 4, raising=False)
    assert not tiny.takes_masks
    monkeypatch.undo()
    assert tiny.takes_masks
