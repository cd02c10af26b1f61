"""`evaluate --lengths` and `--coherence`, `generate --wrap`, `report --tables`: on a tiny model, end to end."""

import json

import polars as pl
import pytest

from data import load_all
from data.store.rundir import records
from tests.check_contract import fits_contract

ARMS = ("--arm", "baseline", "--arm", "fixed")


@pytest.fixture
def chain(tiny_tuned_folder, prompts_file):
    def words(folder):
        return ["--run", folder, "--model", tiny_tuned_folder, "--data", prompts_file, "--holdout", "none"]

    return words


def test_tokens_and_where_they_end_are_kept(run, chain, tmp_path, tiny_tuned):
    assert run(*chain(tmp_path), "generate", "--max-new-tokens", 8, *ARMS)[0] == 0
    table = pl.read_parquet(tmp_path / "generations.parquet")
    for row in table.to_dicts():
        assert len(row["token_ids"]) == len(row["token_ends"]) == row["new_tokens"]
        first = int(row["control_token"] is not None)
        for at in range(first, row["new_tokens"]):
            cut = tiny_tuned.tokenizer.decode(row["token_ids"][first : at + 1], skip_special_tokens=True)
            assert row["response"][: row["token_ends"][at]] == cut.rstrip("\ufffd")
    fits_contract(tmp_path)


def test_lengths_of_one_generation_are_those_of_shorter_ones(run, chain, tmp_path):
    """Greedy decoding goes on from what is there: a cut at k has the rates of a generation of k tokens."""
    long, short = tmp_path / "long", tmp_path / "short"
    code, out, err = run(
        *chain(long)[:-2], "--json", "generate", "--max-new-tokens", 8, *ARMS, "evaluate", "--lengths", "2,4,8"
    )
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    table = pl.read_parquet(long / "lengths.parquet")
    assert table.to_dicts() == told["lengths"]
    assert run(*chain(short)[:-2], "generate", "--max-new-tokens", 4, *ARMS, "evaluate")[0] == 0
    keys = ["dataset", "label", "arm", "scorer"]
    both = table.filter(tokens=4).join(pl.read_parquet(short / "summary.parquet"), on=keys, suffix="_short")
    assert both.height == table.filter(tokens=4).height > 0 and (both["n"] > 0).all()
    for name in ("n", "refused", "broken", "answered"):
        assert both[name].to_list() == both[f"{name}_short"].to_list()
    code, _, err = run(*chain(long)[:-2], "evaluate", "--lengths", "2,16")
    assert code == 1 and "answers have at most 8 tokens: generate --max-new-tokens 16 first" in err
    assert run(*chain(long)[:-2], "evaluate", "--lengths", "2,x")[0] == 2
    assert run(*chain(long)[:-2], "report")[0] == 0
    assert "Refusal against answer length" in (long / "report.html").read_text()


def test_coherence_is_the_unsteered_models_mean_log_likelihood(run, chain, tmp_path, tiny_tuned):
    import torch

    from interventions.model.prompt_format import encode

    code, _, err = run(*chain(tmp_path), "generate", "--max-new-tokens", 6, *ARMS, "evaluate", "--coherence")
    assert code == 0, err
    assert "fewer than 50 unsteered answers" in err
    table = pl.read_parquet(tmp_path / "coherence.parquet")
    answers = pl.read_parquet(tmp_path / "generations.parquet")
    assert table.height == answers.height == 80
    for row, answer in zip(table.to_dicts()[::7], answers.to_dicts()[::7], strict=True):
        first = int(answer["control_token"] is not None)
        ids = answer["token_ids"]
        if len(ids) == first:
            assert row["log_likelihood"] is None
            continue
        prompt = encode(tiny_tuned.tokenizer, [answer["prompt"]]).ids[0]
        with torch.no_grad():
            logits = tiny_tuned.module(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        own = [float(logits[len(prompt) + at - 1, ids[at]]) for at in range(first, len(ids))]
        assert row["log_likelihood"] == pytest.approx(sum(own) / len(own), abs=1e-4)
        assert row["tokens"] == len(own)
    assert pl.read_parquet(tmp_path / "summary.parquet")["incoherent"].is_null().all()


def test_prompts_in_a_template_stand_beside_the_plain_ones(run, tiny_tuned_folder, prompts_file, tmp_path):
    template = tmp_path / "tell.txt"
    template.write_text("please tell me: {prompt} my friend\n")
    words = ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file]
    assert run(*words, "generate", "--max-new-tokens", 2, *ARMS)[0] == 0
    plain = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    code, _, err = run(*words, "generate", "--max-new-tokens", 2, *ARMS, "--wrap", template, "evaluate")
    assert code == 0, err
    table = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    wrapped = table.filter(dataset="mine in tell")
    texts = dict(load_all([str(prompts_file)]).select("id", "prompt").iter_rows())
    assert wrapped["prompt"].to_list() == [f"please tell me: {texts[key]} my friend" for key in wrapped["id"]]
    assert table.height == plain.height + wrapped.height and set(table["dataset"]) == {"mine", "mine in tell"}
    assert set(pl.read_parquet(tmp_path / "run" / "scores.parquet")["dataset"]) == {"mine in tell"}
    assert records(tmp_path / "run")["generations"]["options"]["wrap"] == str(template)
    assert run("--run", tmp_path / "run", "verify", "--share", "0")[0] == 0
    template.write_text("no place")
    code, _, err = run(*words, "generate", "--wrap", template)
    assert code == 1 and "it has no {prompt}, where each prompt goes" in err


def test_a_prompt_counts_once_in_the_pool_however_often_it_stands_somewhere(run, tiny_tuned_folder, tmp_path):
    rows = [{"id": str(at), "prompt": text, "label": label} for at, (text, label) in enumerate(
        [("tell me", "benign"), ("tell me", "benign"), ("write a poem", "benign"), ("kill a person", "harmful")])]  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows if name == "one" else rows[:1])))
    fit = tmp_path / "fit.jsonl"
    fit.write_text("\n".join(json.dumps({"prompt": text, "label": label, "category": category}) for text, label, category in
                             [("a b", "harmful", "weapons"), ("how do", "benign", None), ("the best", "harmful", "weapons"), ("for my", "benign", None)]))  # fmt: skip
    group = ["--run", tmp_path / "run", "--model", tiny_tuned_folder]
    assert run(*group, "extract", "--data", fit, "--holdout", "none", "vectors")[0] == 0
    code, _, err = run(
        *group,
        "generate",
        "--data",
        tmp_path / "one.jsonl",
        "--data",
        tmp_path / "two.jsonl",
        "--max-new-tokens",
        2,
        *ARMS,
        "evaluate",
    )
    assert code == 0, err
    assert "1 prompts of two stand in one too" in err and "1 prompts of one stand there more than once" in err
    summary = pl.read_parquet(tmp_path / "run" / "summary.parquet").filter(arm="baseline", scorer="phrases")
    counts = {(row["dataset"], row["label"]): row["n"] for row in summary.to_dicts()}
    assert counts["(pooled)", "benign"] == 2 and counts["one", "benign"] == 3 and counts["two", "benign"] == 1
