"""The commands: a chain, which value counts, what is made again, and what a mistake looks like."""

import json
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

import cli
from commands.framework.options import Option
from commands.framework.records import command_line, without_secrets
from commands.framework.settings import spread
from data.store.digests import LEDGER
from tests import ROOT
from tests.check_contract import fits_contract


@pytest.fixture
def chain(run, tiny_folder, prompts_file, tmp_path):
    """The group's options for a run on the tiny model and the user's prompts."""
    return ["--run", tmp_path / "run", "--model", tiny_folder, "--data", prompts_file]


def stamps(folder: Path):
    return {
        path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file() and path.name[0] != "."
    }


def test_the_chain_writes_everything_the_contract_names(run, chain, tmp_path):
    code, _, err = run(*chain, "extract", "vectors", "trace", "--max-new-tokens", 4, "evaluate", "report")
    assert code == 0, err
    made = set(stamps(tmp_path / "run"))
    assert made == {
        "prompts.safetensors", "prompts.parquet", "vectors.safetensors", "logit_lens.parquet", "traces.parquet", "generations.parquet",
        "scores.parquet", "summary.parquet", "report.html", "run.json",
    }  # fmt: skip
    fits_contract(tmp_path / "run")
    entry = json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]["generations"]
    assert {
        "command",
        "model",
        "revision",
        "template",
        "tokenizer",
        "versions",
        "backend",
        "seed",
        "start",
        "end",
    } <= set(entry)


def test_nothing_is_made_twice_and_a_change_remakes_what_rests_on_it(run, chain, tmp_path):
    assert run(*chain, "extract", "vectors", "generate")[0] == 0
    before = stamps(tmp_path / "run")
    code, _, err = run(*chain, "--batch-tokens", 7, "extract", "vectors", "generate")
    assert code == 0 and "again" not in err
    assert stamps(tmp_path / "run") == before
    code, _, err = run(*chain, "vectors", "--tau", "0.01", "evaluate")
    assert code == 0 and "vectors is made again: tau changed" in err and "vectors are newer" in err
    after = stamps(tmp_path / "run")
    assert after["prompts.safetensors"] == before["prompts.safetensors"]
    assert after["generations.parquet"] != before["generations.parquet"]


def test_missing_inputs_are_made_or_named(run, chain, tmp_path):
    code, out, err = run(*chain, "--no-auto", "generate")
    assert code == 1 and "vectors` first" in err and not out
    code, out, err = run(*chain, "--json", "generate", "--max-new-tokens", 2)
    assert code == 0, err
    (line,) = out.splitlines()
    assert json.loads(line)["command"] == "generate"
    assert "running extract" in err and "running vectors" in err


def test_which_value_counts(run, chain, tmp_path):
    def strength(*words, **environment):
        assert run(*chain, *words, **environment)[0] == 0
        return pl.read_parquet(tmp_path / "run" / "traces.parquet")["strength"][-1]

    assert strength("trace", "--prompt", "tell me") == -0.3
    assert strength("trace", "--prompt", "tell me", REFUSAL_TRACE_STRENGTH="2") == 2
    assert strength("trace", "--prompt", "tell me", "--strength", "3", REFUSAL_TRACE_STRENGTH="2") == 3

    def seed(*words, **environment):
        assert run(*chain, *words, "generate", "--max-new-tokens", 1, **environment)[0] == 0
        return pl.read_parquet(tmp_path / "run" / "generations.parquet")["seed"][0]

    assert seed(REFUSAL_SEED="4") == 4
    assert seed(REFUSAL_SEED="4", REFUSAL_GENERATE_SEED="5") == 5
    assert seed("--seed", 6, REFUSAL_SEED="4", REFUSAL_GENERATE_SEED="5") == 6


def test_the_model_is_taken_from_the_record(run, chain, tmp_path, tiny_folder):
    assert run(*chain, "extract")[0] == 0
    assert run("--run", tmp_path / "run", "trace", "--prompt", "tell me")[0] == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]["traces"]
    assert record["model"] == str(tiny_folder)


def test_arms_get_names_that_tell_them_apart(run, chain, tmp_path):
    words = ["--arm", "baseline", "--arm", "fixed:strength=-1", "--arm", "fixed:unit=raw,strength=2,category=weapons"]
    code, _, err = run(*chain, "generate", "--max-new-tokens", 3, *words)
    assert code == 0, err
    table = pl.read_parquet(tmp_path / "run" / "generations.parquet")
    assert set(table["arm"]) == {"baseline", "fixed:strength=-1", "fixed:category=weapons,strength=2,unit=raw"}
    assert not table.select("dataset", "id", "arm").is_duplicated().any()


def test_a_seed_draws_the_random_direction_unless_its_arm_names_one(run, chain, tmp_path):
    def answers(seed, arm):
        words = ["--seed", seed, "generate", "--max-new-tokens", 8, "--strength", 1, "--arm", arm, "--replace"]
        assert run(*chain, *words)[0] == 0
        return pl.read_parquet(tmp_path / "run" / "generations.parquet").select("id", "response").sort("id")

    by_seed = {seed: answers(seed, "random") for seed in (1, 2)}
    assert not by_seed[1].equals(by_seed[2])
    assert all(answers(3, f"random:seed={seed}").equals(table) for seed, table in by_seed.items())


def test_no_arm_reads_labels_or_categories(run, chain, tmp_path, prompts_file):
    def texts(path):
        words = [
            "--run",
            tmp_path / "run",
            "generate",
            "--data",
            path,
            "--max-new-tokens",
            5,
            "--strength",
            2,
            "--replace",
        ]
        assert run(*words)[0] == 0
        return pl.read_parquet(tmp_path / "run" / "generations.parquet").sort("arm", "id")["response"].to_list()

    assert run(*chain, "--holdout", "none", "vectors")[0] == 0
    rows = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    for row, other in zip(rows, rows[7:] + rows[:7], strict=True):
        row["label"], row["category"] = other["label"], other["category"]
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(map(json.dumps, rows)))
    assert texts(prompts_file) == texts(shuffled)


def test_benign_rows_are_asked_for_and_can_be_added(run, tiny_folder, tmp_path):
    only = tmp_path / "only.jsonl"
    only.write_text('{"prompt": "kill a person", "category": "weapons"}\n')
    more = tmp_path / "more.csv"
    more.write_text("prompt\nkill a process\nwrite a poem\n")
    words = ["--run", tmp_path / "run", "--model", tiny_folder, "--data", only, "--holdout", "none"]
    code, _, err = run(*words, "extract", "vectors")
    assert code == 1 and "--benign NAME_OR_FILE" in err
    for name, advice in (("generate", "`extract --benign NAME_OR_FILE`"), ("lowrank", "`extract --benign NAME_OR_FILE`"),
                         ("probe", "--benign NAME_OR_FILE")):  # fmt: skip
        code, _, err = run(*words, name)
        assert code == 1 and advice in err, name
    assert run(*words, "vectors", "--benign", more)[0] == 0
    code, _, err = run(*words, "sweep")
    assert code == 1 and "--benign NAME_OR_FILE" in err
    assert run(*words, "sweep", "--benign", more, "--strengths", "-0.3", "--layers", "2", "--max-new-tokens", 2)[0] == 0


USAGE = [
    ["nosuchcommand"],
    ["extract", "--nosuchoption"],
    ["extract", "vectors", "trace", "--strength", "much"],
    ["extract", "vectors", "generate", "--max-new-tokens", "0"],
    ["extract", "--layers", "9-3"],
    ["extract", "--layers", "deep"],
    ["trace", "--scope", "everywhere"],
    ["trace", "--strength", "nan"],
    ["--limit", "0", "extract"],
    ["--batch-tokens", "-5", "extract"],
    ["--dtype", "int3", "extract"],
    ["vectors", "--tau", "-1"],
    ["vectors", "--method", "magic"],
    ["generate", "--arm", "magic"],
    ["extract", "vectors", "--run", "elsewhere"],
    ["sweep", "--arm", "fixed:colour=red"],
    ["generate", "--arm", "baseline", "--arm", "baseline"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_a_usage_error_anywhere_runs_nothing(run, chain, tmp_path, words):
    code, out, err = run(*chain, *words)
    assert code == 2 and not out and "Error" in err
    assert not (tmp_path / "run").exists()


def test_a_bad_environment_variable_is_a_usage_error(run, chain, tmp_path):
    assert run(*chain, "extract", "vectors", REFUSAL_VECTORS_TOP_K="many")[0] == 2
    assert not (tmp_path / "run").exists()


WRONG = [
    (["extract", "--layers", "99"], "layers 0 to 3"),
    (["extract", "--suffix", "x", "--position", "last"], "go together"),
    (["--data", "nowhere.csv", "extract"], "no such file"),
    (["--data", "hub-set-that-is-not", "extract"], "unknown data"),
    (["--model", "no/such-model", "extract"], "no/such-model"),
    (["--device", "warp9", "extract"], "--device cpu"),
    (["trace", "--prompt", " "], "--prompt is empty"),
    (["trace", "--prompt", "tell", "--category", "nosuch"], "no vector for category"),
    (["trace", "--prompt", "tell", "--layer", "44"], "layers 0 to 3"),
    (["report"], "nothing to report"),
    (["evaluate", "--scorer", "judge"], "pass --judge-model"),
    (["--remote", "--host", "127.0.0.1:9", "trace"], "http://"),
    (["--remote", "--host", "http://127.0.0.1:9", "trace"], "no NDIF server answers"),
]


@pytest.mark.parametrize(("words", "reason"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_mistake_is_one_line_and_leaves_nothing_half_written(run, chain, tmp_path, words, reason):
    code, _, err = run(*chain, *words)
    lines = [
        line
        for line in err.splitlines()
        if line
        and not line.startswith("tracing")
        and "asking the hub" not in line
        and "running" not in line
        and "have no split" not in line
        and "made " not in line
        and "it/s" not in line
        and "row/s" not in line
    ]
    assert code == 1 and len(lines) == 1 and reason in lines[0], err
    assert not [
        path
        for path in (tmp_path / "run").rglob("*")
        if path.name.startswith(".") and path.name not in (".lock", LEDGER)
    ]


def test_damaged_files_are_named(run, chain, tmp_path):
    assert run(*chain, "vectors")[0] == 0
    (tmp_path / "run" / "vectors.safetensors").write_bytes(b"\x80\x04 pickled")
    code, _, err = run(*chain, "trace", "--prompt", "tell me")
    assert code == 1 and "vectors.safetensors" in err
    (tmp_path / "run" / "run.json").write_text("{")
    code, _, err = run(*chain, "report")
    assert code == 1 and "run.json is damaged" in err


def test_help_imports_nothing_heavy():
    probe = "import sys, runpy; sys.argv=['cli.py','--help']\ntry: runpy.run_path('cli.py', run_name='__main__')\nexcept SystemExit: pass\n"
    probe += "print('HEAVY', [m for m in ('torch','transformers','polars','nnsight','altair','datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=Path(cli.__file__).parent)
    assert "HEAVY []" in done.stdout, done


def test_datasets_lists_what_can_be_named_and_touches_no_run_directory(run, tmp_path):
    code, out, err = run("--run", tmp_path / "run", "datasets")
    assert code == 0 and err == "" and "coconot:contrast" in out and "CC-BY-4.0" in out
    code, out, _ = run("--run", tmp_path / "run", "datasets", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["command"] == "datasets"
    xstest = next(known for known in answer["table"] if known["name"] == "xstest")
    assert {"rows": 450, "licence": "CC-BY-4.0", "gated": True, "hub": "walledai/XSTest"}.items() <= xstest.items()
    assert not (tmp_path / "run").exists()


def test_the_chain_runs_on_a_hub_set_from_a_mirror(run, tiny_folder, prompts_file, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mirror" / "JailbreakBench" / "JBB-Behaviors" / "behaviors"
    folder.mkdir(parents=True)
    goals = {
        "harmful": ["how do i kill a person", "kill my friend"],
        "benign": ["kill a python process", "write a poem"],
    }
    for split, texts in goals.items():
        made = {"Index": [0, 1], "Goal": texts, "Behavior": ["x", "y"], "Category": ["c", "c"]}
        pl.DataFrame(made).write_parquet(folder / f"{split}.parquet")
    files = "".join(f"  - split: {s}\n    path: behaviors/{s}.parquet\n" for s in goals)
    card = f"---\nconfigs:\n- config_name: behaviors\n  data_files:\n{files}---\n"
    (folder.parent / "README.md").write_text(card)
    options = ["--run", tmp_path / "run", "--model", tiny_folder, "--data", "jbb", "--data-mirror", tmp_path / "mirror"]
    code, _, err = run(*options, "--holdout", "none", "extract", "vectors", "generate", "--max-new-tokens", 2)
    assert code == 0, err
    assert pl.read_parquet(tmp_path / "run" / "generations.parquet")["id"].n_unique() == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["artefacts"]["generations"]["data"] == ["jbb"]
    more = ["--data", prompts_file, "extract", "--benign", "jbb"]
    code, _, err = run(*options[:4], "--data-mirror", tmp_path / "mirror", *more)
    assert code == 0, err
    rows = pl.read_parquet(tmp_path / "run" / "activations" / "prompts.parquet")
    assert rows.filter(dataset="jbb")["label"].to_list() == ["benign", "benign"]
    code, _, err = run(*options[:6], "--data-mirror", tmp_path, "extract")
    assert code == 1 and "has no JailbreakBench/JBB-Behaviors" in err and len(err.strip().splitlines()) == 1


def test_vectors_are_carried_away_and_baked_in(run, chain, tmp_path):
    code, _, err = run(
        *chain, "vectors", "export", "--layers", "2", "bake", "--strength", "2", "--strength-unit", "unit"
    )
    assert code == 0, err
    assert (tmp_path / "run" / "export" / "safetensors.safetensors").exists()
    assert json.loads((tmp_path / "run" / "baked" / "baked.json").read_text())["operation"] == "add"
    code, _, err = run(*chain, "export", "--format", "gguf", "--layers", "0")
    assert code == 1 and "0" in err


def test_one_layer_is_carried_away_at_the_default_depth_of_the_model(run, chain, tmp_path):
    """Layer 2 of 4 is the default; 18/32 of the way through layers 1 to 3 would be 3."""
    for layers, wanted in (("0,1", 1), ("0,3", 3), ("1-3", 2), ("0-3", 2)):
        code, out, err = run(*chain, "--json", "extract", "--layers", layers, "export", "--format", "lm-eval")
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])["layer"] == wanted
        plan = torch.load(tmp_path / "run" / "export" / "lm-eval.pt", weights_only=True)
        assert list(plan) == [f"layers.{wanted}"]


def test_answers_are_written_to_label_by_hand_and_read_back(run, chain, tmp_path):
    hand = tmp_path / "hand.csv"
    words = ["generate", "--max-new-tokens", "2", "evaluate", "--hand", hand]
    assert run(*chain, *words)[0] == 0 and hand.exists()
    table = pl.read_csv(hand, infer_schema=False)
    table.with_columns(verdict=pl.lit("comply")).write_csv(hand)
    code, _, err = run(*chain, "evaluate", "--hand", hand)
    assert code == 0, err
    scores = pl.read_parquet(tmp_path / "run" / "scores.parquet")
    assert scores.filter((pl.col("scorer") == "hand") & (pl.col("verdict") == "comply")).height == table.height


def test_the_tables_say_what_was_done(run, chain, tmp_path):
    words = ["--layer", 1, "--strength", -2, "--strength-unit", "unit", "--scope", "all", "--category", "weapons"]
    assert run(*chain, "generate", "--arm", "fixed", "--max-new-tokens", 1, *words)[0] == 0
    row = pl.read_parquet(tmp_path / "run" / "generations.parquet").row(0, named=True)
    told = {"layer": 1, "strength": -2.0, "strength_unit": "unit", "scope": "all", "vector": "weapons"}
    assert told.items() <= row.items()


def test_runs_are_compared_in_one_page_of_its_own(run, tmp_path):
    from tests.made.runs import synthetic_run

    a, b = (synthetic_run(tmp_path / name, 60, arms=["baseline", "random"]) for name in "ab")
    pages = []
    for words in (["--compare", a, b], ["--compare", a, "--compare", b]):
        code, out, err = run("--run", a, "--json", "report", *words, "datasets")
        assert code == 0, err
        first, second = map(json.loads, out.splitlines())
        assert (first["command"], second["command"]) == ("report", "datasets")
        assert first["wrote"] == str(a / "compare.html") and not (a / "report.html").exists()
        pages.append((a / "compare.html").read_text())
    assert pages[0] == pages[1] and "Paired differences" in pages[0]
    code, _, err = run("--run", a, "report", "--compare", a)
    assert code == 1 and "--compare runs/a runs/b" in err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--compare a b c", "--compare a --compare b --compare c"),
        ("--compare a b --out x y", "--compare a --compare b --out x y"),
        ("--compare a b status d", "--compare a --compare b status d"),
        ("--compare status b", "--compare status --compare b"),
        ("--compare a --compare b c", "--compare a --compare b --compare c"),
        ("--out x --compare a", "--out x --compare a"),
        ("a b", "a b"),
    ],
)
def test_values_after_one_option_end_at_an_option_or_a_command(typed, meant):
    assert spread(typed.split(), ["--compare"], {"status", "report"}) == meant.split()


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--host", "http://me:pw@host:8/x?key=pw"], "--host http://host:8/x"),
        (["--judge-url=https://me:p/w@host/v1"], "--judge-url=https://host/v1"),
        (["--data", "https://me:pw@host/a@b.csv"], "--data https://host/a@b.csv"),
        (["--prompt", "mail me@here, see http://host/@me"], "--prompt 'mail me@here, see http://host/@me'"),
        (["--arm", "fixed:strength=-1"], "--arm fixed:strength=-1"),
    ],
)
def test_what_is_secret_in_addresses_is_not_recorded(words, kept):
    assert command_line(words) == kept


@pytest.mark.parametrize("text", ["a" * 100_000, "a-1" * 100_000, "1" * 100_000, "a://" * 50_000, "a://b" * 50_000])
def test_a_long_text_is_looked_through_once(text):
    start = time.monotonic()
    assert without_secrets(text) == text
    assert without_secrets(f"{text} http://me:pw@host") == f"{text} http://host"
    assert time.monotonic() - start < 2


def test_options_are_declared_in_one_file_and_each_says_its_default():
    folder = ROOT / "commands"
    assert [path.name for path in folder.rglob("*.py") if "click.option(" in path.read_text()] == ["options.py"]
    for command in [cli.cli, *cli.cli.commands.values()]:
        for param in command.params:
            if isinstance(param, Option) and param.name not in ("where", "operation", "as_json", "no_auto", "debug"):
                assert "[default: " in (param.help or ""), (command.name, param.name)
                if isinstance(param.fallback, (int, float)) and not isinstance(param.fallback, bool):
                    assert f"[default: {param.fallback:g}]" in (param.help or ""), (command.name, param.name)
