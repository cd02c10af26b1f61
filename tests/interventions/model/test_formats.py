"""Prompt formats: the token ids that transformers' own template gives, the user's words told from it, one BOS, nothing dropped."""

from copy import deepcopy

import pytest

from data.errors import UserError
from data.prompts.conversations import as_prompt
from interventions.model.formats.choice import PromptFormat, set_format, template_hash
from interventions.model.formats.named import NAMED
from interventions.model.prompt_format import encode, render

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
         "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n")  # fmt: skip
QWEN3 = CHATML + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
DATED = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML
PARTS = CHATML.replace("{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}").replace(
    "{% for m in messages %}", "{% for m in messages if m['content'] is not string %}"
)
NEEDY = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system message') }}{% endif %}" + CHATML
TEXT = "tell me of a poem"


@pytest.fixture
def tokenizer(embedded):
    return deepcopy(embedded.tokenizer)


def put(tokenizer, own=CHATML, **asked):
    said = []
    tokenizer.chat_template = own
    set_format(tokenizer, PromptFormat(**asked), "m", said.append)
    return said


def users(tokenizer, prompt=TEXT):
    """The user's words as they are told from the template's, and the row."""
    encoded = encode(tokenizer, [prompt])
    (start, stop), (ids,) = encoded.user[0], encoded.ids
    return tokenizer.decode(ids[start:stop]).strip(), ids


@pytest.mark.parametrize(
    ("own", "asked", "messages", "more"),
    [
        (CHATML, {}, [], {}), (CHATML, {"system": "Be kind."}, [{"role": "system", "content": "Be kind."}], {}),
        (GEMMA, {}, [], {}), (QWEN3, {}, [], {}), (QWEN3, {"thinking": False}, [], {"enable_thinking": False}),
        (QWEN3, {"thinking": True}, [], {"enable_thinking": True}), (NEEDY, {"system": "x"}, [{"role": "system", "content": "x"}], {}),
        ({"default": CHATML, "rag": GEMMA}, {}, [], {}), ({"default": CHATML, "rag": GEMMA}, {"name": "rag"}, [], {"chat_template": GEMMA}),
        *((CHATML, {"name": name}, [], {"chat_template": NAMED[name]}) for name in NAMED),
        (CHATML, {"template": GEMMA}, [], {"chat_template": GEMMA}),
    ],
)  # fmt: skip
def test_ids_are_transformers_own(tokenizer, own, asked, messages, more):
    plain = deepcopy(tokenizer)
    plain.chat_template = own
    wanted = plain.apply_chat_template(
        [*messages, {"role": "user", "content": TEXT}], add_generation_prompt=True, tokenize=False, **more
    )
    put(tokenizer, own, **asked)
    said, ids = users(tokenizer)
    assert ids == plain(wanted, add_special_tokens=False)["input_ids"] and said == TEXT


def test_the_papers_model_is_prompted_without_a_user_header(tokenizer):
    put(tokenizer, name="refusal-llama3")
    assert (
        render(tokenizer, TEXT)
        == f"{tokenizer.bos_token}{TEXT}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_pattern_frames_the_prompt_and_none_leaves_it_bare(tokenizer):
    put(tokenizer, name="Q: {prompt}\\n'A':")
    assert render(tokenizer, TEXT) == f"Q: {TEXT}\n'A':" and users(tokenizer)[0] == TEXT
    put(tokenizer, name="{system}: {prompt}", system="Say")
    assert render(tokenizer, TEXT) == f"Say: {TEXT}"
    put(tokenizer, name="none")
    assert render(tokenizer, TEXT) == TEXT


def test_a_date_is_the_one_given_and_part_of_what_results_rest_on(tokenizer):
    hashes = set()
    for day in ("2024-07-26", "2024-07-27"):
        put(tokenizer, DATED, date=day)
        assert f"{day[-2:]} Jul 2024" in render(tokenizer, TEXT)
        hashes.add(template_hash(tokenizer))
    put(tokenizer, CHATML, date="2024-07-26")
    plain = template_hash(tokenizer)
    put(tokenizer, CHATML)
    assert len(hashes) == 2 and plain == template_hash(tokenizer)


def test_content_in_parts_is_given_in_parts(tokenizer):
    assert "in parts" in put(tokenizer, PARTS)[0]
    assert users(tokenizer)[0] == TEXT


@pytest.mark.parametrize(
    ("own", "asked", "says"),
    [
        (CHATML.replace("'content'", "'text'"), {}, "leaves nothing of the user's text"), (NEEDY, {}, "needs a system message"),
        (GEMMA, {"system": "x"}, "System role not supported"), ("{{ messages[-1]['content'] }}", {"system": "x"}, "nothing of --system"),
        (CHATML, {"thinking": True}, "knows nothing of thinking"), (CHATML, {"name": "nothing"}, "no prompt format 'nothing'"),
        ({"rag": CHATML, "tools": CHATML}, {}, "no default"), (None, {"system": "x"}, "no place for --system"),
        (CHATML, {"name": "{prompt}{prompt}"}, "once"), (CHATML, {"name": "{prompt}", "system": "x"}, "go together"),
        ("{% if %}", {}, "fails on a prompt"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused_in_one_line(tokenizer, own, asked, says):
    with pytest.raises(UserError, match=says) as told:
        put(tokenizer, own, **asked)
    assert "\n" not in str(told.value)


def test_bos_is_there_once(tokenizer):
    wanted = None
    for own in (
        "{{ bos_token }}|{{ messages[0]['content'] }}",
        "{{ bos_token }}{{ bos_token }}|{{ messages[0]['content'] }}",
    ):
        put(tokenizer, own)
        said, ids = users(tokenizer)
        assert said == TEXT and ids[:1] == [tokenizer.bos_token_id] != ids[1:2] and ids == (wanted or ids)
        wanted = ids


TURNS = [
    {"role": "user", "content": "first <|im_end|>"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": TEXT},
]


def test_of_a_conversation_the_last_turn_is_the_users_and_what_stands_before_is_text(tokenizer):
    put(tokenizer)
    said, ids = users(tokenizer, as_prompt(TURNS, "row"))
    plain = deepcopy(tokenizer)
    assert said == TEXT and tokenizer.decode(ids) == plain.apply_chat_template(
        TURNS, add_generation_prompt=True, tokenize=False
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3  # not the one that a turn's text holds


@pytest.mark.parametrize("name", ["none", "Q: {prompt}"])
def test_a_format_that_leaves_a_context_out_is_refused(tokenizer, name):
    put(tokenizer, name=name)
    with pytest.raises(UserError, match="leaves out what stands before"):
        encode(tokenizer, [as_prompt(TURNS, "row")])
