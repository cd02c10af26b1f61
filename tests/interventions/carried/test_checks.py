"""`check` finds what is broken on purpose, and says nothing of what is whole; the cheap part runs once a model."""

import json
from contextlib import contextmanager

import pytest

from data.errors import UserError
from interventions import open_model
from interventions.carried.checks import every_check, off
from interventions.reading import checks
from interventions.traced import decoding
from tests.made.families import make_family


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@contextmanager
def given(model, change):
    """While it lasts, the module is called with what `change` makes of its arguments."""
    handle = model.module.register_forward_pre_hook(
        lambda _m, args, named: (args, change(dict(named))), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


def without(name):
    return lambda named: {key: value for key, value in named.items() if key != name}


def odd(found):
    return [one.name for one in found if not one.holds]


def test_a_whole_model_holds(tiny_tuned):
    found = every_check(tiny_tuned)
    assert not odd(found) and not off(found) and len(found) == 15


def test_a_model_that_reads_its_padding_is_found(tiny_tuned):
    with given(tiny_tuned, lambda named: without("attention_mask")(without("position_ids")(named))):
        found = checks.quick(tiny_tuned)
    assert odd(found) == ["padded batch"] and "extract" in off(found)


def test_a_cache_that_is_none_is_found(tiny_tuned):
    with given(tiny_tuned, without("past_key_values")):
        found = checks.quick(tiny_tuned)
    assert odd(found) == ["cache"] and off(found)[0] == "trace" and "extract" not in off(found)


def test_steering_that_ends_with_the_prompt_is_found(tiny_tuned, monkeypatch):
    whole = decoding.apply_edit
    monkeypatch.setattr(decoding, "apply_edit", lambda *args: whole(*args) if args[3] else None)
    found = every_check(tiny_tuned, ["generate"])
    assert odd(found) == ["steered, generated", "steered, all"]


def test_a_prompt_that_is_not_told_from_its_template_is_found(tiny_tuned, monkeypatch):
    monkeypatch.setattr(checks, "render_all", lambda _tokenizer, texts: ["<bos>"] * len(texts))
    assert odd(checks.quick(tiny_tuned)) == ["user's text"]


def test_what_held_is_kept_and_what_did_not_is_tried_again(tiny_tuned_folder, cache, monkeypatch):
    model = open_model(str(tiny_tuned_folder))
    with given(model, without("past_key_values")), pytest.raises(UserError, match=r"cache: .*`check` says"):
        checks.check_once(model)
    assert not cache.exists()
    checks.check_once(model)
    (kept,) = (cache / checks.KEPT).iterdir()
    assert all(one["holds"] for one in json.loads(kept.read_text()))
    monkeypatch.setattr(checks, "quick", lambda _model: pytest.fail("it runs again"))
    checks.check_once(model)


def test_other_weights_have_another_fingerprint(tiny_tuned, tiny, tiny_tuned_folder):
    assert len({checks.fingerprint(model) for model in (tiny_tuned, tiny, open_model(str(tiny_tuned_folder), dtype="bfloat16"))}) == 3  # fmt: skip


def test_the_command_line_says_what_is_off(run, tiny_tuned_folder, tmp_path):
    model = make_family("mamba", tiny_tuned_folder, tmp_path / "mamba")
    code, out, err = run("--json", "check", "--model", model)
    told = json.loads(out)
    assert code == 1 and {"generate", "trace", "bake --add"} <= set(told["off"]) and "extract" not in told["off"]
    assert (
        "answers" in err.splitlines()[-1]
        and "off: trace" in err.splitlines()[-1]
        and len(told["table"]) == told["checks"]
    )
    code, out, _ = run("check", "--model", model, "--for", "extract")
    assert code == 0 and "padded" in out and "bake" not in out
    code, out, err = run("--json", "check", "--model", tmp_path / "nothing")
    assert code == 1 and json.loads(out)["off"][0] == "extract" and not (tmp_path / "runs").exists()
