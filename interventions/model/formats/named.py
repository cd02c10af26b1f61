"""Chat templates by name; and those to teach with: a model's own without its default system prompt, or a simple one."""

import re
from typing import Any

# The template of the published model (arXiv 2603.13359), which has no user header; for a base model with Llama 3's
# vocabulary. And one in plain words for any other without a template.
PUBLISHED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "### Answer:\n{{ message['content'] }}{{ eos_token }}\n\n{% else %}{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Answer:\n{% endif %}"
)
_TURNS = (
    "{{ bos_token or '' }}{% for message in messages %}WHAT{% endfor %}{% if add_generation_prompt %}THEN{% endif %}"
)


def _turns(what: str, then: str) -> str:
    return _TURNS.replace("WHAT", what).replace("THEN", then)


# Their own system messages, where none is given: of FastChat's vicuna_v1.1 (fastchat/conversation.py), and of Stanford's Alpaca
# (train.py, prompt_no_input), whose answers follow without a blank.
_VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
           "answers to the user's questions.")  # fmt: skip
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# Of models that are prompted in another way than their tokenizer says, or whose tokenizer says nothing.
NAMED = {
    "refusal-llama3": PUBLISHED_TEMPLATE,
    "llama3": _turns("<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>",
                     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "llama2": "{{ bos_token or '' }}{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' ~ messages[0]['content'] ~ "
              "'\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
              "{% for message in turns %}{% if message['role'] == 'user' %}[INST] {{ (system if loop.first else '') ~ message['content'] }} "
              "[/INST]{% else %} {{ message['content'] }} {{ eos_token }}{{ bos_token or '' }}{% endif %}{% endfor %}",
    "chatml": _turns("<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n", "<|im_start|>assistant\n").removeprefix("{{ bos_token or '' }}"),
    "vicuna": _turns("{% if loop.first and message['role'] != 'system' %}" + _VICUNA + " {% endif %}{% if message['role'] == 'system' %}"
                     "{{ message['content'] }} {% elif message['role'] == 'user' %}USER: {{ message['content'] }} {% else %}"
                     "ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}", "ASSISTANT:"),
    "alpaca": _turns("{% if loop.first and message['role'] != 'system' %}" + _ALPACA + "\n\n{% endif %}{% if message['role'] == 'system' %}"
                     "{{ message['content'] }}\n\n{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
                     "{% else %}### Response:{{ message['content'] }}\n\n{% endif %}", "### Response:"),
    "plain": PLAIN_TEMPLATE,
}  # fmt: skip
DEFAULT_SYSTEM = re.compile(
    r"\{%-?\s*if\s+loop\.first\s+and\s+messages\[0\]\[.role.\]\s*!=\s*.system.\s*-?%\}.*?\{%-?\s*endif\s*-?%\}",
    re.DOTALL,
)


def answer_template(tokenizer: Any) -> str:
    """The chat template to train and run with: the tokenizer's own without its default system prompt, or a simple one.

    A default system prompt costs tokens in every prompt and says who the base model is. The form that SmolLM2 has is
    recognised; a template that inserts one in another way stays as it is.
    """
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if own:
        return DEFAULT_SYSTEM.sub("", own)
    vocabulary = tokenizer.get_vocab()
    published = {"<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"} <= vocabulary.keys()
    return PUBLISHED_TEMPLATE if published else PLAIN_TEMPLATE
