"""`vectors`, `probe`, `lowrank`, `diff` and `sweep` from the command line."""

import hashlib
import json
import shutil

import polars as pl
import pytest
import torch

from interventions import open_model
from interventions.gates.fit import fit_probe
from interventions.gates.gate import FittedGate
from interventions.methods.fit import fit_vectors
from interventions.methods.lowrank import LowRank
from interventions.methods.vectors import SteeringVectors
from interventions.model.prompt_format import encode
from tests.check_contract import fits_contract
from tests.made.prompts import split_prompts
from tests.oracles import hooked


@pytest.fixture(scope="session")
def split_file(tmp_path_factory):
    return split_prompts(tmp_path_factory.mktemp("data") / "split.jsonl")


@pytest.fixture
def chain(tiny_tuned_folder, split_file, tmp_path):
    """The group's options for a run on a tiny model with refusal tokens."""
    return ["--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", split_file]


def records(tmp_path):
    return json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]


def test_probe_writes_the_librarys_fit_and_is_made_once(run, chain, tmp_path):
    code, out, err = run(*chain, "probe", "--fpr", "0.1")
    assert code == 0 and "running extract" in err and "near-miss" in out
    folder = tmp_path / "run"
    probe, report = (
        FittedGate.load(folder / "probe.safetensors"),
        fit_probe(folder / "activations" / "prompts.safetensors", 2, fpr=0.1),
    )
    assert probe.layer == 2 and torch.equal(probe.weight, report.probe.weight)
    assert pl.read_parquet(folder / "probe_roc.parquet").equals(report.roc)
    assert pl.read_parquet(folder / "probe_layers.parquet").equals(report.layers)
    stamp = (folder / "probe.safetensors").stat().st_mtime_ns
    code, out, err = run(*chain, "--json", "probe", "--fpr", "0.1")
    assert code == 0 and "again" not in err and (folder / "probe.safetensors").stat().st_mtime_ns == stamp
    answer = json.loads(out)
    assert answer["command"] == "probe" and {row["against"] for row in answer["table"]} == {"all", "near-miss"}
    code, _, err = run(*chain, "probe", "--layer", "auto", "--fit", "published")
    assert code == 0 and "probe is made again" in err
    layers = pl.read_parquet(folder / "probe_layers.parquet")
    assert layers["auc"].max() == layers.filter(chosen=True)["auc"].item()
    assert records(tmp_path)["probe"]["key"]["fit"] == "published"
    fits_contract(folder)


def test_a_gated_arm_makes_its_probe_and_remakes_it_as_it_was(run, chain, tmp_path):
    words = ["generate", "--arm", "gated", "--max-new-tokens", 2]
    code, _, err = run(*chain, *words)
    assert code == 0 and "generate needs a probe (there is none): running probe" in err
    table = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    assert table["gate"].null_count() == 0 and table["gate"].is_between(0, 1).all()
    assert run(*chain, "probe", "--layer", 1)[0] == 0
    assert run(*chain, "--limit", 100, "extract")[0] == 0
    code, _, err = run(*chain, *words)
    assert code == 0 and "a probe (the activations are newer)" in err
    assert records(tmp_path)["probe"]["key"]["layer"] == 1
    code, _, err = run(*chain, "--no-auto", "--run", tmp_path / "empty", *words)
    assert code == 1 and "first" in err


@pytest.mark.parametrize("words", [["probe", "--layer", "deep"], ["probe", "--fpr", "2"], ["probe", "--fit", "svm"]])
def test_usage_errors(run, chain, tmp_path, words):
    assert run(*chain, *words)[0] == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["contrastive", "pca", "logistic", "lda", "random", "shuffled"])
def test_every_method_is_the_librarys(run, chain, tmp_path, method):
    code, out, err = run(*chain, "vectors", "--method", method)
    assert code == 0, err
    folder = tmp_path / "run"
    paired = method in ("contrastive", "pca")
    source = folder / "activations" / ("pairs.safetensors" if paired else "prompts.safetensors")
    made, wanted = SteeringVectors.load(folder / "vectors.safetensors"), fit_vectors(source, method)
    assert made.metadata == wanted.metadata
    assert all(torch.equal(made.tensors[name], wanted.tensors[name]) for name in ("weapons", "feelings"))
    lens = pl.read_parquet(folder / "logit_lens.parquet")
    assert lens.height == 2 * 4 * 10 and set(lens["category"]) == {"weapons", "feelings"} and "writes" in out
    fits_contract(folder)


def test_pairs_are_made_of_harmful_training_rows_and_kept(run, chain, tmp_path, split_file):
    code, _, err = run(*chain, "vectors", "--method", "contrastive")
    assert code == 0 and "vectors needs pairs (there are none): running extract --suffix '[feelings]'" in err
    rows = pl.read_parquet(tmp_path / "run" / "activations" / "pairs.parquet")
    assert set(rows["suffix"]) == {"[weapons]", "[feelings]", "[respond]"}
    assert set(rows["label"]) == {"harmful"} and set(rows["split"]) == {"train"} and rows.height == 32 * 3
    before = (tmp_path / "run" / "vectors.safetensors").stat().st_mtime_ns
    code, _, err = run(*chain, "vectors", "--method", "contrastive", "generate", "--max-new-tokens", 1)
    assert code == 0 and "again" not in err and "newer" not in err
    assert (tmp_path / "run" / "vectors.safetensors").stat().st_mtime_ns == before
    code, _, err = run(*chain, "vectors", "--method", "contrastive", "--split", "validation")
    assert code == 0 and "the prompts changed" in err
    code, _, err = run(*chain, "--limit", 80, "extract", "--suffix", "[weapons]", "--suffix", "[feelings]",
                       "--suffix", "[respond]", "generate", "--max-new-tokens", 1)  # fmt: skip
    assert code == 0 and "the activations are newer" in err
    assert records(tmp_path)["vectors"]["key"]["method"] == "contrastive"


def test_contrastive_needs_refusal_tokens(run, tiny_folder, split_file, tmp_path):
    words = ["--run", tmp_path / "run", "--model", tiny_folder, "--data", split_file]
    code, _, err = run(*words, "vectors", "--method", "contrastive")
    assert code == 1 and "has no refusal tokens" in err and len(err.strip().splitlines()) == 1
    code, _, err = run(*words, "vectors", "--method", "pca")
    assert code == 0, err
    assert not (tmp_path / "run" / "activations" / "pairs.safetensors").exists()


def sweep_table(tmp_path):
    return pl.read_parquet(tmp_path / "run" / "sweep.parquet")


def choose(tmp_path, layer, strength):
    """Put a choice into the table, as a sweep of a model that can be steered would."""
    path = tmp_path / "run" / "sweep.parquet"
    here = (pl.col("layer") == layer) & (pl.col("strength") == strength)
    sweep_table(tmp_path).with_columns(here.fill_null(False).alias("chosen")).write_parquet(path)
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    told["artefacts"]["sweep"]["sha256"]["sweep.parquet"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))


SWEPT = ["sweep", "--layers", "1,2", "--strengths", "-0.2,-0.4", "--arm", "fixed", "--max-new-tokens", 3]


def test_sweep_runs_validation_rows_and_is_made_once(run, chain, tmp_path):
    code, out, err = run(*chain, *SWEPT)
    assert code == 0, err
    table = sweep_table(tmp_path)
    assert table.height == 2 * (1 + 4) and set(table["n"]) == {14}
    assert set(pl.read_parquet(tmp_path / "run" / "sweep_prompts.parquet")["split"]) == {"validation"}
    fits_contract(tmp_path / "run")
    stamp = (tmp_path / "run" / "sweep.parquet").stat().st_mtime_ns
    code, out, _ = run(*chain, "--json", *SWEPT)
    assert code == 0 and (tmp_path / "run" / "sweep.parquet").stat().st_mtime_ns == stamp
    assert json.loads(out)["settings"] == 4
    code, _, err = run(*chain, *SWEPT, "--best", 1)
    assert code == 0 and "sweep is made again: best changed" in err
    tried = sweep_table(tmp_path).filter(pl.col("refused").is_not_null())
    assert tried.height == 2 * 2


def test_methods_are_compared_once_and_what_is_for_them_alone_is_refused(run, chain, tmp_path):
    words = ["sweep", "--methods", "mean", "--methods", "contrastive", "--kl", "0.05", "--max-new-tokens", 2]
    code, _, err = run(*chain, "probe", *words, "--keep-refusal", 0.2)
    assert code == 0, err
    path = tmp_path / "run" / "compared.parquet"
    stamp, table = path.stat().st_mtime_ns, pl.read_parquet(path)
    assert {"mean", "contrastive", "random", "prompt-only"} <= set(table["method"]) and "probe" in set(table["gate"])
    code, _, err = run(*chain, *words, "--keep-refusal", 0.2)
    assert code == 0 and path.stat().st_mtime_ns == stamp, err
    fits_contract(tmp_path / "run")
    code, _, err = run(*chain, *words, "--split", "train")
    assert code == 0 and "the gate probe is left out" in err and "probe" not in set(pl.read_parquet(path)["gate"])
    for option, value in (("--keep-refusal", 0.9), ("--kl", "0.5")):
        code, _, err = run(*chain, *SWEPT, option, value)
        assert code == 1 and f"{option} is for sweep --methods" in err
    code, _, err = run(*chain, *words, "--layers", "1")
    assert code == 1 and "leave --layers out" in err


def test_sweeps_default_arm_is_gated_where_there_is_a_probe(run, chain, tmp_path):
    assert run(*chain, "probe")[0] == 0
    code, _, err = run(*chain, *[word for word in SWEPT if word not in ("--arm", "fixed")])
    assert code == 0, err
    assert set(sweep_table(tmp_path)["kind"]) == {"baseline", "gated"}
    gated = sweep_table(tmp_path).filter(kind="gated")
    assert set(gated["arm"]) == {"gated", "gated:harmful=0"} and set(gated["harmful"].round(6)) == {
        0,
        0.133333,
        0.266667,
    }


def test_generate_takes_the_chosen_setting_unless_told_otherwise(run, chain, tmp_path):
    def settings(*words, **environment):
        code, _, err = run(*chain, "generate", "--replace", "--max-new-tokens", 1, *words, **environment)
        assert code == 0, err
        table = pl.read_parquet(tmp_path / "run" / "generations.parquet").filter(kind="fixed")
        return table["layer"][0], table["strength"][0], err

    assert run(*chain, *SWEPT)[0] == 0
    choose(tmp_path, 1, -0.4)
    layer, strength, err = settings()
    assert (layer, strength) == (1, -0.4) and "setting of" in err and "fixed, strength -0.4 residual at layer 1" in err
    assert records(tmp_path)["generations"]["key"]["sweep"] == records(tmp_path)["sweep"]["id"]
    assert settings("--strength", "2")[:2] == (2, 2.0)
    assert settings(REFUSAL_GENERATE_LAYER="3")[:2] == (3, -0.3)
    assert settings("--arm", "baseline", "--arm", "chosen")[:2] == settings()[:2] == (1, -0.4)
    code, _, err = run(*chain, "generate", "--arm", "chosen", "--strength", 2)
    assert code == 1 and "no setting was chosen" in err
    code, _, err = run(*chain, *SWEPT, "--best", 1, "evaluate")
    assert code == 0 and "evaluate needs generations (the sweep is newer)" in err
    choose(tmp_path, 1, -0.4)
    assert run(*chain, "vectors", "--tau", "0.01")[0] == 0
    layer, strength, err = settings()
    assert (layer, strength) == (2, -0.3) and "of other vectors and not used" in err


def test_rows_that_anything_was_chosen_on_are_marked(run, chain, tmp_path):
    assert run(*chain, "probe", *SWEPT)[0] == 0
    choose(tmp_path, 1, -0.4)
    words = ["generate", "--split", "validation", "--max-new-tokens", 1]
    assert run(*chain, *words, "evaluate", "--split", "validation")[0] == 0
    scores = pl.read_parquet(tmp_path / "run" / "scores.parquet")
    assert scores["fitted"].all()
    assert run(*chain, "generate", "--split", "validation", "--max-new-tokens", 1, "--strength", "-0.4", "--arm", "baseline",
               "--arm", "fixed", "--replace", "evaluate", "--split", "validation")[0] == 0  # fmt: skip
    assert not pl.read_parquet(tmp_path / "run" / "scores.parquet")["fitted"].any()


@pytest.fixture
def against(chain, tiny_base_folder):
    return [*chain, "diff", "--against", tiny_base_folder]


def test_diff_compares_what_both_models_read_in_the_same_token_ids(
    run, against, tmp_path, tiny_tuned, tiny_base_folder
):
    code, out, err = run(*against)
    assert code == 0, err
    folder = tmp_path / "run"
    table = pl.read_parquet(folder / "diff.parquet")
    assert table.height == 2 * 4 * 2 and set(table["text"]) == {"tagged", "untagged"}
    assert set(table.filter(text="tagged")["n"]) == {16}
    fits_contract(folder)
    # by hand, one category at one layer: the base under plain hooks, on the fine-tuned model's token ids
    rows = pl.read_parquet(folder / "activations" / "diff-base" / "pairs.parquet").filter(category="weapons")
    prompts = rows["prompt"].unique(maintain_order=True).to_list()
    ids = {c: encode(tiny_tuned.tokenizer, prompts, [f"[{c}]"]).ids for c in ("weapons", "respond")}
    vectors = []
    for model in (open_model(str(tiny_base_folder)), tiny_tuned):
        means = {c: torch.stack([hooked(model, row, [1])[0, -1] for row in ids[c]]).double().mean(0) for c in ids}
        vectors.append(means["weapons"] - means["respond"])
    wanted = torch.nn.functional.cosine_similarity(*vectors, dim=0)
    assert table.filter(text="tagged", category="weapons", layer=1)["cosine"].item() == pytest.approx(
        float(wanted), abs=1e-5
    )
    stamp = (folder / "diff.parquet").stat().st_mtime_ns
    code, out, err = run(*against, "--json")
    assert code == 0 and (folder / "diff.parquet").stat().st_mtime_ns == stamp
    assert len(json.loads(out)["table"]) == 16
    before = (folder / "activations" / "diff-base" / "prompts.safetensors").stat().st_mtime_ns
    code, _, err = run(*against, "--seed", 3)
    assert code == 0 and "diff is made again: seed changed" in err
    assert (folder / "activations" / "diff-base" / "prompts.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("where", [[], ["--simulate", "--sandbox"]], ids=["here", "sandboxed"])
def test_means_alone_give_the_same_cosines_and_nothing_else(run, against, tmp_path, where):
    assert run(*against)[0] == 0
    whole = pl.read_parquet(tmp_path / "run" / "diff.parquet")
    shutil.rmtree(tmp_path / "run" / "activations")
    code, _, err = run(*against, "--means", *where)
    assert code == 0, err
    table = pl.read_parquet(tmp_path / "run" / "diff.parquet")
    assert table.schema == whole.schema and table["cosine"].to_numpy() == pytest.approx(
        whole["cosine"].to_numpy(), abs=1e-6
    )
    assert table.select("low", "high", "ceiling", "floor_low", "floor_high", "halves").null_count().row(0) == (16,) * 6
    left = {path.parent.name for path in (tmp_path / "run" / "activations").rglob("*.safetensors")}
    assert left == {f"diff-{name}-{kind}" for name in ("base", "tuned") for kind in ("pairs", "prompts")}
    assert run(*against, "--means", "report", "--no-auto")[0] == 0


def test_a_model_against_itself_agrees(run, chain, tiny_tuned_folder, tmp_path):
    assert run(*chain, "diff", "--against", tiny_tuned_folder, "--layers", "1,3")[0] == 0
    table = pl.read_parquet(tmp_path / "run" / "diff.parquet")
    assert set(table["layer"]) == {1, 3} and (table["cosine"] > 1 - 1e-9).all()


def test_diff_reads_untagged_text_where_the_base_has_no_place_for_the_tokens(run, chain, tiny_folder, tmp_path):
    code, _, err = run(*chain, "diff", "--against", tiny_folder)
    assert code == 0 and "untagged text only: the refusal tokens of" in err and "lie beyond the vocabulary" in err
    assert set(pl.read_parquet(tmp_path / "run" / "diff.parquet")["text"]) == {"untagged"}
    code, _, err = run(*chain, "diff", "--against", tiny_folder, "--text", "tagged")
    assert code == 1 and "compare --text untagged" in err


def test_the_published_comparison_is_offered(run, against, tmp_path):
    assert run(*against, "--own-split", "--text", "tagged")[0] == 0
    rows = [
        pl.read_parquet(tmp_path / "run" / "activations" / f"diff-{name}" / "pairs.parquet")
        for name in ("base", "tuned")
    ]
    assert (rows[0]["n_tokens"] > rows[1]["n_tokens"]).all()
    assert records(tmp_path)["diff"]["key"]["own_split"] is True


def test_diff_says_what_does_not_compare(run, chain, against, tiny_base_folder, tmp_path):
    code, _, err = run(*chain, "diff")
    assert code == 1 and "pass --against MODEL" in err
    other = tmp_path / "other"
    shutil.copytree(tiny_base_folder, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"kill": ', '"slay": '))
    code, _, err = run(*chain, "diff", "--against", other)
    assert code == 1 and "is 'slay' to" in err and "not the model it was tuned from" in err


def test_lowrank_is_trained_once_and_steers(run, chain, tmp_path):
    words = ["lowrank", "--epochs", 1, "--mode", "input", "--layer", 1]
    code, out, err = run(*chain, *words)
    assert code == 0 and "running extract" in err and "running vectors" in err and "kept epoch" in out
    folder = tmp_path / "run"
    low = LowRank.load(folder / "lowrank.safetensors")
    assert (low.layer, low.metadata["mode"], low.metadata["basis"], len(low.z)) == (1, "input", "shrunk", 2)
    history = pl.read_parquet(folder / "lowrank_training.parquet")
    assert set(history["epoch"]) == {0, 1} and set(history["split"]) == {"train", "held-out"}
    stamp = (folder / "lowrank.safetensors").stat().st_mtime_ns
    code, out, _ = run(*chain, "--json", *words)
    assert code == 0 and (folder / "lowrank.safetensors").stat().st_mtime_ns == stamp
    assert len(json.loads(out)["table"]) == history.height
    code, _, err = run(*chain, "generate", "--max-new-tokens", 1)
    assert code == 0 and "lowrank" not in err
    table = pl.read_parquet(folder / "generations.parquet")
    assert set(table.filter(kind="lowrank")["layer"]) == {1} and set(table.filter(kind="fixed")["layer"]) == {2}
    fits_contract(folder)
    code, _, err = run(*chain, "generate", "--arm", "lowrank:layer=2", "--max-new-tokens", 1)
    assert code == 1 and "the low-rank map is of layer 1" in err


def test_a_lowrank_arm_makes_its_map_and_remakes_it_as_it_was(run, chain, tmp_path):
    words = ["generate", "--arm", "lowrank", "--max-new-tokens", 1]
    assert run(*chain, "lowrank", "--epochs", 1, "--basis", "published")[0] == 0
    assert run(*chain, "vectors", "--tau", "0.01")[0] == 0
    code, _, err = run(*chain, *words)
    assert code == 0 and "generate needs a low-rank map (the vectors are newer): running lowrank" in err
    key = records(tmp_path)["lowrank"]["key"]
    assert key["published"] and key["epochs"] == 1
    assert LowRank.load(tmp_path / "run" / "lowrank.safetensors").metadata["basis"] == "published"


def test_lowrank_needs_refusal_tokens(run, tiny_folder, split_file, tmp_path):
    code, _, err = run(
        "--run", tmp_path / "run", "--model", tiny_folder, "--data", split_file, "extract", "vectors", "lowrank"
    )
    assert code == 1 and "has no refusal tokens to train towards" in err


@pytest.mark.parametrize(("given", "used"), [([], 48), (["--batch-tokens", 24], 24)])
def test_effects_takes_batches_of_the_models_own_size_or_the_one_given(run, chain, monkeypatch, given, used):
    from interventions.steering import effects

    sizes, plan = [], effects.plan_batches
    monkeypatch.setattr(effects, "default_batch_tokens", lambda _model: 48)
    monkeypatch.setattr(effects, "plan_batches", lambda *words: sizes.append(words[1]) or plan(*words))
    code, _, err = run(*chain, *given, "effects", "--arm", "fixed", "--max-new-tokens", 2)
    assert code == 0 and set(sizes) == {used}, err


@pytest.mark.parametrize(("given", "used"), [([], 2048), (["--batch-tokens", 24, "--seed", 3], 24)])
def test_lowrank_trains_on_steps_of_the_size_that_its_help_states(run, chain, tmp_path, monkeypatch, given, used):
    from interventions.steering import train_lowrank

    sizes, plan = [], train_lowrank.plan_batches
    monkeypatch.setattr(train_lowrank, "plan_batches", lambda *words: sizes.append(words[1]) or plan(*words))
    code, _, err = run(*chain, *given, "lowrank", "--epochs", 1)
    assert code == 0 and set(sizes) == {used}, err
    assert records(tmp_path)["lowrank"]["key"]["seed"] == (3 if given else 0)
    assert "[default: 2048]" in " ".join(run("lowrank", "--help")[1].split())


@pytest.mark.parametrize(("given", "seed"), [([], 0), (["--batch-tokens", 24, "--seed", 3], 3)])
def test_capability_has_a_seed_and_says_that_batch_tokens_are_not_its_own(run, chain, monkeypatch, given, seed):
    from data.store.tables import CAPABILITY

    options = {}
    monkeypatch.setattr("commands.capability.version", lambda _package: "0")
    monkeypatch.setattr("interventions.carried.capability.capability",
                        lambda *_words, **named: options.update(named) or pl.DataFrame(schema=CAPABILITY))  # fmt: skip
    code, _, err = run(*chain, *given, "capability", "--arm", "fixed")
    assert code == 0 and options["seed"] == seed and "batch_tokens" not in options, err
    assert ("--batch-tokens does not size lm-eval's batches" in err) is bool(given)
