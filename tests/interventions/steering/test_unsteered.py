"""Replies of a model as it is, against transformers' own greedy decoding."""

import torch

from interventions.steering.unsteered import ANSWERED, replies

TALKS = [
    [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Is this a refusal?"}],
    [
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": "And is this longer one, say, a refusal as well?"},
    ],
    [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Yes?"}],
]


def test_replies_are_those_of_transformers(embedded):
    told = replies(embedded, TALKS, 8)
    for talk, reply in zip(TALKS, told, strict=True):
        ids = embedded.tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = embedded.module.generate(**ids, max_new_tokens=8, do_sample=False)
        assert reply == embedded.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_guards_template_gets_the_answer_as_the_assistants(tiny):
    from interventions.model.formats.choice import render_all

    template = tiny.tokenizer.chat_template
    try:
        talk = [{"role": "user", "content": "please"}, {"role": "assistant", "content": "tell me"}]
        tiny.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        replies(tiny, [talk], 2)
        assert tiny.tokenizer.chat_template.startswith(ANSWERED)
        from data.prompts.conversations import as_prompt

        put = as_prompt([talk[0], {"role": "user", "content": "tell me"}], "x")
        assert render_all(tiny.tokenizer, [put]) == ["user: please\nassistant: tell me\n"]
    finally:
        tiny.tokenizer.chat_template = template
