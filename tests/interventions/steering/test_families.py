"""Many families, tiny and random: read and steered as plain hooks on transformers do it, or refused in one line."""

import polars as pl
import pytest
from safetensors.torch import load_file

from data.errors import UserError
from data.store.tables import PROMPTS
from interventions import extract, open_model
from interventions.carried.checks import every_check
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests.made.families import FAMILIES, STATEFUL, make_family
from tests.made.models_page import ALWAYS, row, rows, third
from tests.made.tools import vectors_of
from tests.oracles import changed, cut, hooked, last_logits, relative

SCOPES = ("prompt-last", "prompt", "generated", "all")
STEPS, LAYER = 4, 2
TEXTS = [
    "how do i kill a python process",
    "tell me",
    "write a poem for my friend please",
    "kill the process",
    "tell me the best",
]


def prompts(texts=TEXTS):
    kinds = [("weapons", "harmful"), (None, "benign")]
    made = [{"id": str(at), "prompt": text, "category": kinds[at % 2][0], "label": kinds[at % 2][1], "dataset": "d"}
            for at, text in enumerate(texts)]  # fmt: skip
    return pl.DataFrame(made, schema=PROMPTS)


def spelled_out(model, ids, scope, delta):
    """Greedy tokens with no cache at all: the whole row anew for each, under a plain hook."""
    row, end = list(ids), len(ids)
    at = {
        "prompt-last": slice(end - 1, end),
        "prompt": slice(0, end),
        "generated": slice(end - 1, None),
        "all": slice(None),
    }[scope]

    def change(hidden):
        new = hidden.clone()
        new[0, at] = hidden[0, at] + delta
        return new

    with changed(model, LAYER, change):
        for _ in range(STEPS):
            row.append(int(last_logits(model, row).argmax()))
    return row[end:]


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in third()[1]]
)
def test_a_family_is_right_or_refused(name, tiny_tuned_folder, tmp_path):
    model = open_model(str(make_family(name, tiny_tuned_folder, tmp_path / "model")))
    assert row(name, every_check(model)) == rows()[name]
    encoded = encode(model.tokenizer, TEXTS)
    states = load_file(extract(model, prompts(), tmp_path / "run"))["activations"]
    layers = range(model.n_layers)
    for at, ids in enumerate(encoded.ids):
        wanted = hooked(model, ids, layers)[:, -1]
        assert relative(states[at], wanted) < 1e-5, at
    vectors = vectors_of(model)
    arms = [Arm(scope, "fixed", LAYER, "weapons", 0.5, scope=scope) for scope in SCOPES]
    if name in STATEFUL:
        with pytest.raises(UserError, match="more than keys and values") as told:
            generate(model, prompts(), Tools(vectors), tmp_path / "g.parquet", arms=arms, max_new_tokens=STEPS)
        assert "\n" not in str(told.value) and not (tmp_path / "g.parquet").exists()
        return
    table = generate(model, prompts(), Tools(vectors), tmp_path / "g.parquet", arms=arms, max_new_tokens=STEPS)
    delta = vectors.delta(LAYER, "weapons", 0.5, arms[0].unit)
    for scope in SCOPES:
        answers = table.filter(arm=scope)["response"].to_list()
        for ids, answer in zip(encoded.ids, answers, strict=True):
            tokens = cut(model, spelled_out(model, ids, scope, delta))
            control = tokens[:1] and model.tokenizer.decode(tokens[:1]).startswith("[")
            assert answer == model.tokenizer.decode(tokens[1:] if control else tokens, skip_special_tokens=True)


def test_the_page_names_every_family_and_none_is_wrong():
    assert list(rows()) == list(FAMILIES) and not [line for line in rows().values() if "WRONG" in line]
