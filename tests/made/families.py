"""Made-up models of many families: tiny, random, with the tiny Llama's tokenizer and template."""

from pathlib import Path
from typing import Any

import torch

from tests.made.templates import TEMPLATES, tokenizer_with

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32}  # fmt: skip
DEEPSEEK = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MAMBA = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "conv_kernel": 4}
# Name -> transformers' model type, and what its configuration needs beside `SIZES`.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 4}),
    "ministral": ("ministral", {"sliding_window": 4}),
    "mixtral": ("mixtral", EXPERTS),
    "qwen2": ("qwen2", {}),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 40}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "qwen3_next": ("qwen3_next", EXPERTS | {"shared_expert_intermediate_size": 40, "linear_num_key_heads": 2,
                   "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 8, "sliding_window": 4}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 32}),
    "phimoe": ("phimoe", EXPERTS),
    "granite": ("granite", {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0}),
    "granitemoe": ("granitemoe", EXPERTS | {"residual_multiplier": 0.22}),
    "granitemoehybrid": ("granitemoehybrid", EXPERTS | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
                         "layer_types": ["mamba", "attention", "mamba", "attention"], "shared_intermediate_size": 40}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 4}),
    "olmoe": ("olmoe", EXPERTS),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "persimmon": ("persimmon", {}),
    "nemotron": ("nemotron", {}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": 4}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}),
    "smollm3": ("smollm3", {}),
    "arcee": ("arcee", {}),
    "helium": ("helium", {}),
    "exaone4": ("exaone4", {"sliding_window": 4}),
    "seed_oss": ("seed_oss", {}),
    "ernie4_5": ("ernie4_5", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "apertus": ("apertus", {}),
    "minicpm3": ("minicpm3", DEEPSEEK | {"scale_depth": 1.4, "head_dim": 16, "num_key_value_heads": 4}),
    "hyperclovax": ("hyperclovax", {"use_post_norm": True, "residual_multiplier": 0.3}),
    "gpt_oss": ("gpt_oss", EXPERTS | {"sliding_window": 4, "intermediate_size": 48}),
    "jetmoe": ("jetmoe", EXPERTS | {"num_key_value_heads": 2, "kv_channels": 8, "num_attention_heads": None}),
    "deepseek_v2": ("deepseek_v2", EXPERTS | DEEPSEEK | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
                    "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}),
    "deepseek_v3": ("deepseek_v3", EXPERTS | DEEPSEEK | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
                    "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}),
    "llama4": ("llama4_text", EXPERTS | {"intermediate_size_mlp": 64, "intermediate_size": 48, "interleave_moe_layer_step": 1,
               "attention_chunk_size": 128}),
    "gpt2": ("gpt2", GPT2),
    "gpt_neo": ("gpt_neo", {"num_layers": 4, "num_heads": 4, "attention_types": [[["global"], 4]]}),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": ("gptj", GPT2 | {"rotary_dim": 4}),
    "codegen": ("codegen", GPT2 | {"rotary_dim": 4}),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "bloom": ("bloom", {"n_layer": 4, "n_head": 4}),
    "falcon": ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True, "head_dim": None}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "bias": True,
                     "parallel_attn": False, "head_dim": None}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 256}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "xglm": ("xglm", {"d_model": 32, "attention_heads": 4, "num_layers": 4, "ffn_dim": 64}),
    "biogpt": ("biogpt", {}),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", MAMBA),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "falcon_h1": ("falcon_h1", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64}),
    "jamba": ("jamba", EXPERTS | {"mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
              "use_mamba_kernels": False}),
    "bamba": ("bamba", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1, 3]}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
    "recurrent_gemma": ("recurrent_gemma", {"lru_width": 32, "attention_window_size": 16}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 256}),
    "bitnet": ("bitnet", {}),
    "diffllama": ("diffllama", {}),
    "doge": ("doge", {}),
}  # fmt: skip


# Those that remember more than keys and values.
STATEFUL = {"qwen3_next", "granitemoehybrid", "mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "lfm2",
            "recurrent_gemma", "rwkv"}  # fmt: skip


def make_family(name: str, tiny_folder: Path, folder: Path, **changes: Any) -> Path:
    """A model folder of a family, weights wide enough that greedy choices are not near-ties."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    if name == "qwen2":  # whose tokenizer transformers reads as bytes, whatever a folder says it is
        tokenizer = tokenizer_with(TEMPLATES["chatml"][0], False)
    kind, own = FAMILIES[name]
    torch.manual_seed(0)
    settings = SIZES | {"vocab_size": len(tokenizer)} | own | changes
    config = AutoConfig.for_model(kind, **{key: value for key, value in settings.items() if value is not None})
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for part, parameter in module.named_parameters():
            if parameter.ndim > 1 and "A_log" not in part:
                parameter.mul_(3)
            elif "norm" in part or part.endswith(("bias", "ln_1.weight", "ln_2.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
