"""The user's tokens are those of the user's text, whatever words the template itself uses."""

from copy import deepcopy

import polars as pl
import pytest

from data.errors import UserError
from interventions import extract
from interventions.model.prompt_format import encode


def users_text(tokenizer, prompt):
    """What the tokens that count as the user's say, and how many there are."""
    encoded = encode(tokenizer, [prompt])
    (start, stop), (ids,) = encoded.user[0], encoded.ids
    return tokenizer.decode(ids[start:stop]), stop - start


@pytest.mark.parametrize("prompt", ["a", "assistant", "user", "You are", "im_start", "named", "tell me of a", " two  "])
def test_words_of_the_template_are_not_the_users(embedded, prompt):
    said, many = users_text(embedded.tokenizer, prompt)
    assert said == prompt and many == len(embedded.tokenizer(prompt)["input_ids"])


def with_template(tokenizer, template):
    other = deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_a_template_may_strip_the_text_or_rewrite_it(tiny):
    frame = "<bos>tell me <user> {% for m in messages %}{{ WHAT }}{% endfor %} <bot> tell me"
    stripping = with_template(tiny.tokenizer, frame.replace("WHAT", "m['content'] | trim"))
    assert users_text(stripping, "  tell me ") == ("tell me", 2)
    twice = with_template(tiny.tokenizer, frame.replace("WHAT", "m['content'] ~ ' ' ~ m['content']"))
    assert users_text(twice, "a poem")[0] == "tell me <user> a poem a poem <bot> tell me"
    assert users_text(with_template(tiny.tokenizer, None), "tell me a poem") == ("me a poem", 3)  # never position 0


def test_a_blank_prompt_has_a_last_token_and_no_mean(tiny, tmp_path):
    columns = ("id", "prompt", "category", "label", "dataset", "split")
    prompts = pl.DataFrame([{**dict.fromkeys(columns), "id": str(at), "prompt": text} for at, text in enumerate(["me", ""])],
                           dict.fromkeys(columns, pl.String))  # fmt: skip
    assert users_text(tiny.tokenizer, "")[1] == 0
    extract(tiny, prompts, tmp_path)
    with pytest.raises(UserError, match="no token to take the mean of"):
        extract(tiny, prompts, tmp_path, position="mean")
    bare = with_template(tiny.tokenizer, None)
    bare.bos_token = None
    with pytest.raises(UserError, match="no token is left"):
        encode(bare, ["me", ""])
