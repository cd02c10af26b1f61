"""What share of a GPU a vLLM engine takes; no vLLM is needed to be told."""

from types import SimpleNamespace

import pytest

from data.errors import UserError
from interventions.backends.backend import VLLMOptions
from interventions.backends.vllm.opening import open_engine


@pytest.mark.parametrize(
    ("device", "memory", "expected"), [("cuda:0", 0.3, 0.3), ("cuda", None, None), ("cpu", 0.3, None)]
)
def test_a_share_of_memory_is_passed_on_for_a_gpu(tiny, monkeypatch, device, memory, expected) -> None:
    seen = {}

    def local(_source, _dtype, _device, settings):
        seen.update(settings)
        raise UserError("seen")

    monkeypatch.setattr("interventions.backends.vllm.local.Local", local)
    tokenizer, options = SimpleNamespace(model_max_length=64), VLLMOptions(memory=memory)
    with pytest.raises(UserError, match="seen"):
        open_engine("x", "x", tiny.module, "model.layers", "auto", device, options, tokenizer)
    assert seen.get("gpu_memory_utilization") == expected
