"""Templates of many families: the ids that transformers' own give, the user's words told from the template's, one BOS."""

from datetime import date

import pytest

from data.errors import UserError
from data.prompts.conversations import as_prompt
from interventions.model.formats.choice import PromptFormat, set_format
from interventions.model.formats.named import NAMED
from interventions.model.prompt_format import encode, render
from tests.made.templates import BROKEN, TEMPLATES, tokenizer_with

TEXT = "Tell me, user: what does “[INST]” or\n\n### Answer: mean?"
TURNS = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "tell me"},
]
SYSTEM = {"role": "system", "content": "Be kind."}


def ours(name, /, **asked):
    template, _, adds = TEMPLATES[name]
    tokenizer = tokenizer_with(template, adds)
    set_format(tokenizer, PromptFormat(**asked), name, lambda _line: None)
    return tokenizer


def theirs(name, messages, **more):
    """transformers' ids, after the BOS that a tokenizer puts before a text if its template writes none."""
    template, _, adds = TEMPLATES[name]
    tokenizer = tokenizer_with(template, adds)
    if template is None:
        return tokenizer(messages[-1]["content"])["input_ids"]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False, **more)
    first = [tokenizer.bos_token_id] if adds else []
    return ids if ids[:1] == first else first + ids


CASES = [
    *((name, [], {}) for name in TEMPLATES),
    *((name, [SYSTEM], {"system": "Be kind."}) for name, (_, takes, _) in TEMPLATES.items() if takes),
    ("qwen 3", [], {"thinking": True}), ("qwen 3", [], {"thinking": False}), ("qwen 3", [SYSTEM], {"thinking": False, "system": "Be kind."}),
    ("command r, several", [], {"name": "rag"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "before", "asked"), CASES)
def test_ids_are_transformers_own_and_the_users_words_are_told(name, before, asked):
    tokenizer = ours(name, **asked)
    more = {"enable_thinking": asked["thinking"]} if "thinking" in asked else {}
    more |= {"chat_template": asked["name"]} if "name" in asked else {}
    (ids,), ((start, stop),) = (lambda found: (found.ids, found.user))(encode(tokenizer, [TEXT]))
    assert ids == theirs(name, [*before, {"role": "user", "content": TEXT}], **more)
    whole = tokenizer.decode(ids[start:stop])
    assert (
        whole == TEXT if start > 1 or tokenizer.bos_token_id is not None else TEXT.endswith(whole)
    )  # never position 0
    assert tokenizer.bos_token_id is None or (
        ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    )


@pytest.mark.parametrize(
    "name", [name for name, (template, _, _) in TEMPLATES.items() if template is not None and name != "llama 2"]
)
def test_a_conversation_is_put_as_transformers_puts_it(name):
    tokenizer = ours(name)
    (ids,), ((start, stop),) = (lambda found: (found.ids, found.user))(encode(tokenizer, [as_prompt(TURNS, "row")]))
    assert ids == theirs(name, TURNS) and tokenizer.decode(ids[start:stop]) == "tell me"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_refused_in_a_line(name):
    template, says = BROKEN[name]
    with pytest.raises(UserError, match=says) as told:
        set_format(tokenizer_with(template, True), PromptFormat(), "m", lambda _line: None)
    assert "\n" not in str(told.value)


def test_a_date_is_the_one_given_whatever_the_clock_says():
    for name, written in (("llama 3.2", "05 Mar 2021"), ("gpt-oss", "2021-03-05")):
        assert written in render(ours(name, date="2021-03-05"), TEXT) and str(date.today()) not in render(
            ours(name, date="2021-03-05"), TEXT
        )


# What FastChat 0.2.36's conversation.py makes of TURNS, and Stanford's train.py of an instruction.
CHAT = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PUBLISHED = [
    ("llama2", None, TURNS, "<s>[INST] first [/INST] yes </s><s>[INST] tell me [/INST]"),
    ("llama2", "Be kind.", TURNS, "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nfirst [/INST] yes </s><s>[INST] tell me [/INST]"),
    ("vicuna", None, TURNS, f"<s>{CHAT} USER: first ASSISTANT: yes</s>USER: tell me ASSISTANT:"),
    ("vicuna", "Be kind.", TURNS, "<s>Be kind. USER: first ASSISTANT: yes</s>USER: tell me ASSISTANT:"),
    ("alpaca", None, TURNS[2:], f"<s>{TASK}\n\n### Instruction:\ntell me\n\n### Response:"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "system", "turns", "wanted"), PUBLISHED)
def test_formats_by_name_are_the_published_ones(name, system, turns, wanted):
    tokenizer = tokenizer_with(None, True)
    set_format(tokenizer, PromptFormat(name=name, system=system), "m", lambda _line: None)
    assert (
        name in NAMED
        and render(tokenizer, as_prompt(turns, "row") if len(turns) > 1 else turns[0]["content"]) == wanted
    )
