"""Chat templates to teach with: a model's own without its default system prompt, or a simple one."""

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
DEFAULT_SYSTEM = re.compile(
    r"\{%-?\s*if\s+loop\.first\s+and\s+messages\[0\]\[.role.\]\s*!=\s*.system.\s*-?%\}.*?\{%-?\s*endif\s*-?%\}",
    re.DOTALL,
)


def answer_template(tokenizer: Any) -> str:
    """The chat template to train and run with: the tokenizer's own without its default system prompt, or a simple one.

    A default system prompt costs tokens in every prompt and says who the base model is. The form that SmolLM2 has is
    recognised; a template that inserts one in another way stays as it is.
    """
    if tokenizer.chat_template:
        return DEFAULT_SYSTEM.sub("", tokenizer.chat_template)
    vocabulary = tokenizer.get_vocab()
    published = {"<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"} <= vocabulary.keys()
    return PUBLISHED_TEMPLATE if published else PLAIN_TEMPLATE
