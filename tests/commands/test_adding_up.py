"""Arms and prompts add up: several commands leave what one command with all of it would have written."""

import json
import shutil

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data import load_all
from data.store.rundir import records
from tests.check_contract import fits_contract

KEY = ["dataset", "id", "arm"]


@pytest.fixture
def chain(tiny_tuned_folder, prompts_file):
    """Options of a run in a folder."""

    def options(folder):
        return ["--run", folder, "--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none"]

    return options


def answers(folder):
    return pl.read_parquet(folder / "generations.parquet").sort(KEY)


def test_several_commands_leave_what_one_would(run, chain, tmp_path, monkeypatch):
    many, one = tmp_path / "many", tmp_path / "one"
    made = []
    import interventions.steering.generate as module

    real = module.answer_rows
    monkeypatch.setattr(module, "answer_rows", lambda *a, **k: made.append((len(a[2]), len(a[3]))) or real(*a, **k))
    words = ["generate", "--max-new-tokens", 3]
    for arms in (["baseline", "fixed:strength=-0.2"], ["fixed:strength=-0.5"], ["routed", "baseline"]):
        code, _, err = run(*chain(many), *words, "--limit", 12, *(word for arm in arms for word in ("--arm", arm)))
        assert code == 0, err
    assert sum(rows * arms for rows, arms in made) == 12 * 4  # baseline once
    asked = ["--arm", "baseline", "--arm", "fixed:strength=-0.2", "--arm", "fixed:strength=-0.5", "--arm", "routed"]
    assert run(*chain(many), *words, *asked)[0] == 0
    assert run(*chain(one), *words, *asked)[0] == 0
    assert_frame_equal(answers(many), answers(one), rel_tol=1e-4)  # batches differ
    fits_contract(many)
    before = (many / "generations.parquet").stat().st_mtime_ns
    code, _, err = run(*chain(many), *words, *asked)
    assert code == 0 and (many / "generations.parquet").stat().st_mtime_ns == before and "already" not in err


ARMS = ("baseline", "fixed:strength=-0.2", "fixed:strength=-0.5", "logit-bias")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 6), st.sets(st.sampled_from(ARMS), min_size=1)), min_size=1, max_size=4))
@example([(3, {*ARMS[:2]}), (5, {*ARMS[:3]})])  # some lack two prompts and one lacks five: then the table is whole
@example([(2, {ARMS[0]}), (4, {ARMS[1]}), (4, {*ARMS[:2]})])
def test_whatever_is_asked_for_in_turn_is_there(run, chain, tmp_path, asked):
    """Every row of every command, and a record that tells any two tables apart."""
    shutil.rmtree(tmp_path, ignore_errors=True)
    ids, words = (
        load_all([str(chain("")[5])])["id"].to_list(),
        [*chain(tmp_path / "run"), "generate", "--max-new-tokens", 1],
    )
    wanted, known = set(), {}
    for limit, arms in asked:
        code, _, err = run(*words, "--limit", limit, *(word for arm in sorted(arms) for word in ("--arm", arm)))
        assert code == 0, err
        wanted |= {(arm, ids[row]) for arm in arms for row in range(limit)}
        table = answers(tmp_path / "run")
        found = [
            (f"fixed:strength={strength}" if kind == "fixed" else kind, own)
            for kind, strength, own in table.select("kind", "strength", "id").rows()
        ]
        assert sorted(found) == sorted(wanted)
        assert known.setdefault(records(tmp_path / "run")["generations"]["id"], set(found)) == set(found)


def test_who_is_stopped_between_arms_goes_on(run, chain, tmp_path, monkeypatch):
    import interventions.steering.generate as module

    words = [*chain(tmp_path / "run"), "generate", "--max-new-tokens", 2]
    assert run(*words, "--limit", 3, "--arm", "baseline", "--arm", "fixed")[0] == 0
    real, asked = module.answered, [*words, "--limit", 5, "--arm", "baseline", "--arm", "fixed", "--arm", "routed"]

    def once(*given, arms, **more):
        if len(arms) == 1:
            raise KeyboardInterrupt
        return real(*given, arms=arms, **more)

    monkeypatch.setattr(module, "answered", once)
    assert run(*asked)[0] != 0 and answers(tmp_path / "run").height == 10
    monkeypatch.setattr(module, "answered", real)
    code, _, err = run(*asked)
    assert code == 0 and "10 of 15 are there already" in err and answers(tmp_path / "run").height == 15


def test_fewer_prompts_throw_nothing_away_and_evaluate_takes_what_was_asked_for(run, chain, tmp_path):
    folder, words = tmp_path / "run", ["generate", "--max-new-tokens", 2, "--arm", "baseline", "--arm", "fixed"]
    assert run(*chain(folder), *words, "evaluate")[0] == 0
    assert pl.read_parquet(folder / "scores.parquet")["id"].n_unique() == 40
    code, _, err = run(*chain(folder)[:4], *words, "--data", chain(folder)[5], "--limit", 6)
    assert code == 0 and answers(folder).height == 80
    code, _, err = run("--run", folder, "evaluate")
    assert code == 0 and "34 more have answers" in err
    assert pl.read_parquet(folder / "scores.parquet")["id"].n_unique() == 6
    assert run(*chain(folder), "evaluate")[0] == 0  # --limit is the last command's still
    assert run(*chain(folder), "--limit", 20, "evaluate")[0] == 0
    assert pl.read_parquet(folder / "scores.parquet")["id"].n_unique() == 20
    code, _, err = run(*chain(folder), *words, "--limit", 6, "--replace")
    assert code == 0 and "begins anew" in err and answers(folder).height == 12


def test_two_strengths_of_an_option_get_names_that_tell_them_apart(run, chain, tmp_path):
    for strength in (-0.2, -0.4):
        words = ["generate", "--max-new-tokens", 2, "--limit", 4, "--arm", "fixed", "--strength", strength]
        assert run(*chain(tmp_path), *words)[0] == 0
    table = answers(tmp_path)
    assert dict(table.select("arm", "strength").unique().iter_rows()) == {
        "fixed:strength=-0.2": -0.2,
        "fixed:strength=-0.4": -0.4,
    }


def test_arms_of_other_vectors_go_and_what_needs_none_stays(run, chain, tmp_path):
    words = ["generate", "--max-new-tokens", 2, "--limit", 4]
    assert run(*chain(tmp_path), *words, "--arm", "baseline", "--arm", "fixed")[0] == 0
    assert run(*chain(tmp_path), *words, "--arm", "fixed:strength=-0.6")[0] == 0
    code, _, err = run(*chain(tmp_path), "vectors", "--tau", "0.01", *words, "--arm", "fixed:strength=-0.5")
    assert code == 0 and "of other vectors than there are now" in err
    assert set(answers(tmp_path)["arm"]) == {"baseline", "fixed"}
    assert set(answers(tmp_path).filter(arm="fixed")["strength"]) == {-0.5}


def test_evaluate_answers_every_command_again_where_the_vectors_are_newer(run, chain, tmp_path):
    words = ["generate", "--max-new-tokens", 2, "--limit", 4]
    assert run(*chain(tmp_path), *words, "--arm", "baseline", "--arm", "fixed:strength=-0.3")[0] == 0
    assert run(*chain(tmp_path), *words, "--arm", "fixed:strength=-0.6")[0] == 0
    code, _, err = run(*chain(tmp_path), "vectors", "--tau", "0.01", "evaluate")
    assert code == 0 and "the vectors are newer" in err, err
    assert set(answers(tmp_path)["arm"]) == {"baseline", "fixed:strength=-0.3", "fixed:strength=-0.6"}
    known = records(tmp_path)
    assert known["generations"]["key"]["vectors"] == known["vectors"]["id"]


def test_other_words_under_the_same_id_are_answered_anew(run, chain, prompts_file, tmp_path):
    rows = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    words = ["generate", "--max-new-tokens", 2, "--arm", "baseline"]
    assert run(*chain(tmp_path / "run"), *words)[0] == 0
    rows[0]["prompt"], rows[1]["label"] = "tell me please", "benign"
    changed = tmp_path / prompts_file.name
    changed.write_text("\n".join(map(json.dumps, rows)))
    code, _, err = run("--run", tmp_path / "run", "--data", changed, *words)
    assert code == 0 and "other words now" in err and "39 of 40 are there already" in err
    table = answers(tmp_path / "run")
    assert table.height == 40 and table.filter(id="p0")["prompt"][0] == "tell me please"
    assert table.filter(id="p1")["label"][0] == "benign"


def test_trace_takes_several_arms_and_strengths_and_keeps_earlier_traces(run, chain, tmp_path):
    words = [*chain(tmp_path), "trace", "--arm", "routed", "--arm", "fixed", "--strength", "-0.2,-0.4"]
    code, _, err = run(*words, "--prompt", "tell me the best", "--max-new-tokens", 2)
    assert code == 0, err
    assert run(*chain(tmp_path), "trace", "--prompt", "kill a person")[0] == 0
    assert run(*chain(tmp_path), "trace", "--prompt", "tell me the best")[0] == 0
    table = pl.read_parquet(tmp_path / "traces.parquet")
    found = set(table.select("prompt", "kind", "strength", "max_new_tokens").iter_rows())
    assert found == {("tell me the best", kind, strength, 2) for kind in ("routed", "fixed") for strength in (-0.2, -0.4)} | {
        ("kill a person", "fixed", -0.3, 0), ("tell me the best", "fixed", -0.3, 0)
    }  # fmt: skip
    assert not table.select(*KEY).is_duplicated().any()
    fits_contract(tmp_path)


def test_a_chain_that_mixes_two_sets_of_prompts_is_warned_of(run, tiny_tuned_folder, prompts_file, tmp_path):
    words = ["--run", tmp_path, "--model", tiny_tuned_folder, "extract", "--data", prompts_file, "vectors"]
    code, _, err = run(*words, "generate", "--max-new-tokens", 1, "--limit", 2, "--arm", "baseline")
    assert code == 0 and "the vectors are of" in err and "pass --data" in err


def test_that_nothing_is_left_to_evaluate_is_said_before_anything_is_generated(run, chain, tmp_path):
    _, _, err = run(*chain(tmp_path), "generate", "--max-new-tokens", 1, "--arm", "baseline")
    assert err.index("no rates can come") < err.index("generate:")
