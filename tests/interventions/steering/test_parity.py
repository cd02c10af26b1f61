"""Two engines against each other: figures by hand, what passes and what doesn't, and the command on engines that are here."""

import polars as pl
import pytest
import torch

from data.errors import UserError
from interventions.steering.compared.parity import ENDED, Measured, compare, ended, verdict


def measured(**more):
    generator = torch.Generator().manual_seed(0)
    parts = {
        "engine": "one",
        "key": "k",
        "arms": ["baseline", "fixed"],
        "states": torch.randn(3, 2, 4, generator=generator),
        "first": torch.randn(3, 3, 7, generator=generator).log_softmax(-1),
        "tokens": torch.tensor([[[1, 2, ENDED], [1, 2, 3]]] * 3),
    }
    return Measured(**parts | more)


def test_deviation_and_divergence_are_those_by_hand():
    reference = measured()
    states, first = reference.states.clone(), reference.first.clone()
    states[1, 0] *= 1.5
    first[2, 1] = torch.zeros(7).log_softmax(-1)
    layers, arms = compare(reference, measured(states=states, first=first), 1e-3, None)
    assert layers["deviation"].to_list() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert layers["mean_deviation"].to_list() == pytest.approx([0.5 / 3, 0.0], abs=1e-6)
    p = reference.first[2, 1].double().exp().tolist()
    by_hand = sum(share * (torch.tensor(share).log().item() - torch.tensor(1 / 7).log().item()) for share in p)
    assert arms.filter(arm="baseline")["kl_max"].to_list() == pytest.approx([by_hand], rel=1e-5)
    assert arms.filter(arm="(unsteered)")["kl_max"].to_list() == pytest.approx([0.0], abs=1e-9)


def test_answers_that_differ_do_so_near_a_tie_or_not():
    tokens = measured().tokens.clone()
    tokens[0, 0, 1], tokens[1, 0, 2], tokens[2, 1, 1] = 5, 4, 6  # another token; one behind the end; another token
    asked = []

    def margin(row, arm, before, one, other):
        asked.append((row, arm, before, one, other))
        return 1e-4 if row == 0 else 0.5

    _, arms = compare(measured(), measured(tokens=tokens), 1e-3, margin)
    rows = {row["arm"]: row for row in arms.to_dicts()}
    assert (rows["baseline"]["equal"], rows["baseline"]["near_ties"], rows["baseline"]["differ"]) == (1, 1, 1)
    assert (rows["fixed"]["equal"], rows["fixed"]["near_ties"], rows["fixed"]["differ"]) == (2, 0, 1)
    assert sorted(asked) == [(0, 0, [1], 2, 5), (2, 1, [1], 2, 6)]  # an end has no probability to ask for
    assert rows["fixed"]["first_difference"] == 1


def test_what_is_no_number_never_passes():
    states = measured().states.clone()
    states[0, 1] = float("nan")
    layers, arms = compare(measured(), measured(states=states), 1e-3, None)
    assert verdict(layers, arms, 1e9)
    assert not verdict(*compare(measured(), measured(), 1e-3, None), 1e-9)


def test_other_prompts_are_not_compared():
    with pytest.raises(UserError, match="of other prompts"):
        compare(measured(), measured(key="another"), 1e-3, None)


def test_tokens_behind_a_stop_mean_nothing():
    found = ended(torch.tensor([[[4, 2, 9], [4, 5, 6]]]), {2})
    assert found.tolist() == [[[4, 2, ENDED], [4, 5, 6]]]


@pytest.fixture
def parity(run, tmp_path, tiny_tuned_folder, prompts_file):
    def held(*words):
        own = ("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none")
        return run(*map(str, own), "parity", "--max-new-tokens", "5", "--arm", "baseline", "--arm", "routed", *words)

    return held


def test_half_precision_is_held_against_float32(parity, tmp_path):
    code, _, said = parity("--dtype", "bfloat16", "--tolerance", "1e-7")
    assert code == 1 and "transformers-bfloat16 and transformers-float32 don't say the same" in said
    layers = pl.read_parquet(tmp_path / "run" / "parity_layers.parquet")
    assert layers.select("engine", "against").unique().rows() == [("transformers-bfloat16", "transformers-float32")]
    assert layers.height == 4 and all(1e-4 < size < 0.2 for size in layers["deviation"].to_list())


def test_the_reference_is_not_held_against_itself(parity, tmp_path):
    code, _, said = parity()
    assert code == 0 and "is what others are held against" in said
    assert not (tmp_path / "run" / "parity.parquet").exists()
    code, _, said = parity("--against", "vllm-float32")
    assert code == 1 and "kept: transformers-float32" in said
