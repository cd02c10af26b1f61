"""A sweep's figures are those of plain hooks and of `generate`, and its choice is the rule's, by brute force."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import load_all
from data.errors import UserError
from data.store.tables import SWEEP
from interventions.backends.backend import open_backend
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from interventions.steering.sweep import Shares, choose, grid, shortlist, sweep, sweep_layers
from tests.made.tools import each, vectors_of
from tests.oracles import plain, refusal_ids

BASE = Arm("fixed", "fixed", 2, "weapons", -0.3)


def verdict(text):
    """Any rule will do; this one sees every word."""
    return "broken" if not text else "refuse" if len(text) % 3 == 0 else "comply"


@pytest.fixture(scope="module")
def prompts(prompts_file):
    return load_all([str(prompts_file)]).head(16)


@pytest.fixture(scope="module")
def arms():
    return grid(["fixed"], BASE, [1, 2], [-0.5, 0.4, 2.0], None)


@pytest.fixture
def swept(tiny_tuned, prompts, arms, tmp_path):
    tools = Tools(vectors_of(tiny_tuned))
    return sweep(
        tiny_tuned,
        prompts,
        tools,
        tmp_path / "sweep.parquet",
        arms=arms,
        verdicts=each(verdict),
        best=3,
        max_new_tokens=6,
    )


def test_probabilities_are_those_under_a_plain_hook(swept, tiny_tuned, prompts, arms):
    vectors = vectors_of(tiny_tuned)
    ids = refusal_ids(tiny_tuned)
    encoded = encode(tiny_tuned.tokenizer, prompts["prompt"].to_list())
    for arm in arms:
        delta = vectors.delta(arm.layer, "weapons", arm.strength, "residual")
        shares = [
            float(plain(tiny_tuned, row, arm.layer, "generated", 1, delta=delta)[1].softmax(-1)[ids].sum())
            for row in encoded.ids
        ]
        for label in ("harmful", "benign"):
            wanted = np.mean([share for share, own in zip(shares, prompts["label"], strict=True) if own == label])
            row = swept.filter(layer=arm.layer, strength=arm.strength, label=label).row(0, named=True)
            assert row["refusal_probability"] == pytest.approx(wanted, rel=1e-4)
            assert row["n"] == 8


def test_texts_are_those_of_generate(swept, tiny_tuned, prompts, arms, tmp_path):
    tried = swept.filter(pl.col("refused").is_not_null())
    assert tried.select("layer", "strength").n_unique() == 4  # the baseline and three more
    settings = [arm for arm in arms if not tried.filter(layer=arm.layer, strength=arm.strength).is_empty()]
    named = [replace(arm, name=f"fixed:layer={arm.layer},strength={arm.strength}") for arm in settings]
    table = generate(tiny_tuned, prompts, Tools(vectors_of(tiny_tuned)), tmp_path / "g.parquet",
                     arms=[Arm("baseline", "baseline", 1), *named], max_new_tokens=6)  # fmt: skip
    for arm in [None, *named]:
        own = table.filter(arm="baseline" if arm is None else arm.name)
        for label in ("harmful", "benign"):
            said = [verdict(text) for text in own.filter(label=label)["response"]]
            rows = (
                tried.filter(pl.col("layer").is_null())
                if arm is None
                else tried.filter(layer=arm.layer, strength=arm.strength)
            )
            row = rows.filter(label=label).row(0, named=True)
            assert row["refused"] == pytest.approx(np.mean([one == "refuse" for one in said]))
            assert row["broken"] == pytest.approx(np.mean([one == "broken" for one in said]))


def test_no_setting_reads_labels_or_categories(swept, tiny_tuned, prompts, arms, tmp_path):
    """With labels and categories dealt out anew, what all rows give together stays the same."""
    other = prompts.with_columns(prompts["label"].shuffle(seed=3), prompts["category"].shuffle(seed=4))
    again = sweep(
        tiny_tuned,
        other,
        Tools(vectors_of(tiny_tuned)),
        tmp_path / "again.parquet",
        arms=arms,
        verdicts=each(verdict),
        best=6,
        max_new_tokens=6,
    )
    pooled = lambda table: table.group_by("layer", "strength", maintain_order=True).agg(  # noqa: E731
        (pl.col("refusal_probability") * pl.col("n")).sum()
    )
    one, two = pooled(swept), pooled(again)
    assert one.select("layer", "strength").equals(two.select("layer", "strength"))
    assert np.allclose(one["refusal_probability"], two["refusal_probability"])


def test_a_killed_sweep_goes_on_and_ends_the_same(swept, tiny_tuned, prompts, arms, tmp_path):
    calls = 0

    def dies(text):
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return verdict(text)

    options = {"arms": arms, "best": 3, "max_new_tokens": 6, "batch_tokens": 60}
    tools, path = Tools(vectors_of(tiny_tuned)), tmp_path / "killed" / "sweep.parquet"
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny_tuned, prompts, tools, path, verdicts=each(dies), **options)
    assert not path.exists()
    made, calls = calls, -10_000
    table = sweep(tiny_tuned, prompts, tools, path, verdicts=each(dies), **options)
    assert calls + 10_000 < 4 * prompts.height <= made + calls + 10_000
    assert table.drop("refusal_probability").equals(swept.drop("refusal_probability"))
    assert np.allclose(table["refusal_probability"], swept["refusal_probability"], rtol=1e-4)
    assert [file.name for file in path.parent.iterdir()] == ["sweep.parquet"]


def test_a_simulated_server_gives_the_same(swept, tiny_tuned, prompts, arms, tmp_path):
    there = replace(tiny_tuned, backend=open_backend("simulate"))
    table = sweep(
        there,
        prompts,
        Tools(vectors_of(tiny_tuned)),
        tmp_path / "s.parquet",
        arms=arms,
        verdicts=each(verdict),
        best=3,
        max_new_tokens=6,
    )
    assert table.equals(swept)


def test_a_model_without_refusal_tokens_is_judged_by_text_in_every_setting(tiny, prompts, arms, tmp_path):
    table = sweep(
        tiny,
        prompts,
        Tools(vectors_of(tiny)),
        tmp_path / "sweep.parquet",
        arms=arms,
        verdicts=each(verdict),
        max_new_tokens=4,
    )
    assert table["refusal_probability"].null_count() == table.height == 2 * 7
    assert table["refused"].null_count() == 0 and table.schema == pl.Schema(SWEEP)


def test_a_scorer_that_fails_is_not_counted(tiny, prompts, arms, tmp_path):
    table = sweep(
        tiny,
        prompts,
        Tools(vectors_of(tiny)),
        tmp_path / "sweep.parquet",
        arms=arms[:1],
        verdicts=each(lambda _: None),
        max_new_tokens=2,
    )
    assert table["refused"].null_count() == table.height and not table["chosen"].any()


share = st.integers(0, 20).map(lambda n: n / 20)


@given(st.lists(st.tuples(share, share, share), min_size=2, max_size=12), share)
@settings(max_examples=200, deadline=None)
def test_the_choice_is_the_rule_by_brute_force(rows, loss):
    shares = Shares(*(np.array(column) for column in zip(*rows, strict=True)))
    arms = [replace(BASE, strength=-float(at)) for at in range(len(rows))]
    won = choose(shares, arms, loss)
    keeps, limit = rows[0][0] - loss, rows[0][2] + 0.02
    fine = [row[1] for row in rows[1:] if row[0] >= keeps and row[2] <= limit and row[1] < rows[0][1]]
    if won is None:
        assert not fine
    else:
        assert rows[won][1] == min(fine) and rows[won][0] >= keeps and rows[won][2] <= limit


def test_the_shortlist_prefers_what_keeps_refusal_then_less_over_refusal_then_gentleness():
    arms = [
        BASE,
        *(replace(BASE, layer=layer, strength=s) for layer, s in ((1, -1.0), (1, -2.0), (2, -1.0), (3, -1.0))),
    ]
    shares = Shares(np.array([0.9, 0.9, 0.9, 0.5, 0.95]), np.array([0.5, 0.101, 0.1, 0.0, 0.3]), np.zeros(5))
    assert shortlist(shares, arms, 5, 0.0) == [1, 4, 3, 2]
    assert shortlist(shares, arms, 2, 0.0) == [1, 4]
    assert shortlist(shares, arms, 1, 0.5) == [3]


def test_settings_that_are_no_numbers_come_last():
    arms = [
        BASE,
        *(replace(BASE, layer=layer, strength=s) for layer, s in ((1, -1.0), (2, -9.0), (3, -2.0), (1, -3.0))),
    ]
    harmful, nan = np.array([0.9, 0.9, np.nan, np.nan, 0.2]), np.nan
    assert shortlist(Shares(harmful, np.array([0.5, 0.1, nan, nan, 0.4]), np.zeros(5)), arms, 4, 0.0) == [1, 4, 3, 2]
    assert shortlist(Shares(np.full(5, nan), np.full(5, nan), np.zeros(5)), arms, 9, 0.0) == [1, 3, 4, 2]


def test_a_setting_that_overflows_stops_no_other(tiny_tuned, prompts, tmp_path, caplog):
    arms = grid(["fixed"], replace(BASE, unit="raw"), [1, 2], [1e39, -0.5], None)
    table = sweep(tiny_tuned, prompts, Tools(vectors_of(tiny_tuned)), tmp_path / "sweep.parquet", arms=arms,
                  verdicts=each(verdict), best=2, max_new_tokens=2)  # fmt: skip
    assert table["refusal_probability"].is_null().to_list() == (table["strength"] == 1e39).fill_null(False).to_list()
    assert table["refused"].is_null().to_list() == table["refusal_probability"].is_null().to_list()
    assert ["2 of 5" in line for line in caplog.messages] == [True]


def test_the_grid(tiny_tuned):
    assert sweep_layers(32, range(32)) == [10, 12, 14, 16, 18, 20] and sweep_layers(4, [1]) == [1]
    assert sweep_layers(30, range(30)) == [9, 11, 13, 15, 17, 19] and sweep_layers(30, [0, 29]) == [0, 29]
    found = grid(["gated:harmful=0.1", "logit-bias", "lowrank", "ablate"], BASE, [1, 2], None, 3)
    gated = [arm for arm in found if arm.kind == "gated"]
    assert {(arm.layer, round(arm.strength, 6)) for arm in gated} == {
        (at, s) for at in (1, 2) for s in (-0.1, -0.2, -0.3, -0.4, -0.6)
    }
    assert {arm.harmful for arm in gated} == {0.1} and {arm.name for arm in gated} == {"gated"}
    assert len([arm for arm in found if arm.kind == "logit-bias"]) == 5
    assert {arm.layer for arm in found if arm.kind == "lowrank"} == {3}
    assert len([arm for arm in found if arm.kind == "ablate"]) == 2
    for word in ("baseline", "oracle", "fixed:strength=2", "gated:benign=1", "fixed:layer=1"):
        with pytest.raises(UserError, match="sweep"):
            grid([word], BASE, [1], None, None)


def test_both_labels_are_needed(tiny, prompts, arms, tmp_path):
    for label in ("harmful", "benign"):
        with pytest.raises(UserError, match="to sweep on"):
            sweep(
                tiny,
                prompts.filter(label=label),
                Tools(vectors_of(tiny)),
                tmp_path / "s.parquet",
                arms=arms,
                verdicts=each(verdict),
            )
