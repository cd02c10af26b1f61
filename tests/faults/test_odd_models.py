"""Models with an oddity that people met: right all the same, or one line that names it."""

import json
import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from data.errors import UserError
from data.store.tables import PROMPTS
from interventions import extract, open_model
from interventions.model.blocks import blocks_below_base
from interventions.model.opening import skeleton
from interventions.model.prompt_format import encode
from interventions.tuning.finetune import trained_layers
from tests.made.families import make_family
from tests.oracles import hooked, relative

TEXTS = ["how do i kill a python process", "tell me", "write a poem for my friend please"]


def rows(texts=TEXTS):
    made = [{"id": str(at), "prompt": text, "category": None, "label": "benign", "dataset": "d"} for at, text in enumerate(texts)]  # fmt: skip
    return pl.DataFrame(made, schema=PROMPTS)


def setting(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


@pytest.fixture
def copied(tiny_tuned_folder, tmp_path):
    return shutil.copytree(tiny_tuned_folder, tmp_path / "model")


def test_a_pad_token_beyond_the_table_is_not_read(copied, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(copied)
    model = open_model(str(copied))
    assert model.tokenizer.pad_token_id >= model.module.get_input_embeddings().num_embeddings
    states = load_file(extract(model, rows(), tmp_path / "run"))["activations"]
    for at, ids in enumerate(encode(model.tokenizer, TEXTS).ids):
        assert relative(states[at], hooked(model, ids, range(model.n_layers))[:, -1]) < 1e-5


def test_a_token_beyond_the_table_is_named(copied):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(copied)
    model = open_model(str(copied))
    with pytest.raises(
        UserError, match=r"prompt 2, .*holds the token 'zebra', .* and the model has embeddings for 0 to"
    ):
        encode(model.tokenizer, ["tell me", "tell zebra me"])


def test_answers_beyond_the_positions_are_refused_with_the_most_that_fits(tiny_tuned_folder, tmp_path, run):
    folder = make_family("gpt2", tiny_tuned_folder, tmp_path / "model", n_positions=16, max_position_embeddings=16)
    data = tmp_path / "rows.jsonl"
    labels = zip(TEXTS, ("harmful", "benign", "benign"), strict=True)
    data.write_text("".join(json.dumps({"prompt": text, "label": label}) + "\n" for text, label in labels))
    for many, told in ((7, 0), (8, 1)):  # the longest has ten tokens, and the last new one is not read
        code, _, err = run("--run", tmp_path / "run", "--model", folder, "--data", data, "--holdout", "none", "generate", "--arm", "baseline",
                           "--max-new-tokens", many)  # fmt: skip
        assert code == told, err
    assert "--max-new-tokens 7 is the most" in err.splitlines()[-1]


def test_what_a_generation_config_asks_for_is_said(copied, caplog):
    setting(copied, "generation_config.json", repetition_penalty=1.3, no_repeat_ngram_size=3, temperature=0.6)
    open_model(str(copied))
    (line,) = [record.getMessage() for record in caplog.records if "generation_config" in record.getMessage()]
    assert "repetition_penalty 1.3, no_repeat_ngram_size 3" in line and "temperature" not in line


def test_vectors_are_made_where_no_lens_can_be_drawn(tiny_tuned_folder, tmp_path, prompts_file, run, monkeypatch):
    monkeypatch.setattr("interventions.model.blocks.FINAL_NORMS", ())
    code, out, err = run("--run", tmp_path / "run", "--model", tiny_tuned_folder, "--data", prompts_file, "extract", "vectors",
                         "generate", "--arm", "fixed", "--limit", 2, "--max-new-tokens", 2)  # fmt: skip
    assert code == 0 and "no logit lens: " in err and "generate:" in out
    assert (
        not (tmp_path / "run" / "logit_lens.parquet").exists() and (tmp_path / "run" / "vectors.safetensors").exists()
    )


@pytest.mark.parametrize(
    ("name", "wanted", "left"),
    [("gpt2", ["c_attn", "c_fc", "c_proj"], ""), ("mixtral", ["k_proj", "o_proj", "q_proj", "v_proj"], "down_proj"),
     ("llama", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"], "")],
)  # fmt: skip
def test_what_finetune_trains_is_listed_and_what_it_leaves(tiny_tuned_folder, tmp_path, caplog, name, wanted, left):
    model = open_model(str(make_family(name, tiny_tuned_folder, tmp_path / name)))
    found = trained_layers(model.module.get_submodule("transformer.h" if name == "gpt2" else "model.layers"), name)
    line = next(record.getMessage() for record in caplog.records if "a LoRA trains" in record.getMessage())
    assert found == wanted and ", ".join(wanted) in line and (left in line and "stay as they are" in line) == bool(left)


@pytest.mark.parametrize(
    ("name", "path"), [("gpt2", "h"), ("opt", "decoder.layers"), ("gpt_neox", "layers"), ("mpt", "blocks")]
)
def test_lm_eval_is_told_the_blocks_by_the_names_it_looks_for(tiny_tuned_folder, tmp_path, name, path):
    folder = make_family(name, tiny_tuned_folder, tmp_path / name)
    module = skeleton(str(folder))
    assert blocks_below_base(module, name) == path and all(weight.is_meta for weight in module.parameters())
    assert isinstance(dict(module.base_model.named_modules())[f"{path}.2"], torch.nn.Module)


def test_what_is_no_model_folder_says_how_to_make_one(copied, tmp_path):
    adapter = copied / "adapter"
    adapter.mkdir()
    setting(adapter, "adapter_config.json", base_model_name_or_path="some/base")
    alone = shutil.copytree(adapter, tmp_path / "alone")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "q4.gguf").write_bytes(b"GGUF")
    for path, says in ((adapter, f"the model that it makes is {copied}"), (alone, "adapter of some/base, and no model: merge it"),
                       (tmp_path / "model.gguf", "gguf_file='model.gguf'"), (packed, "gguf_file='q4.gguf'")):  # fmt: skip
        with pytest.raises(UserError) as told:
            open_model(str(path))
        assert says in str(told.value) and "\n" not in str(told.value)


def test_quantised_weights_are_called_so(copied):
    setting(copied, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match=r"quantised \(gptq\).*pass the model that it was made from"):
        open_model(str(copied))
