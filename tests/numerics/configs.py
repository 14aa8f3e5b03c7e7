"""Tiny random-weight configurations of causal LM families, small enough to run in numpy.

Every one keeps what makes its family special (GQA ratio, window, rope scaling, routing, gates …) and
windows are shorter than the test sequences. Keyword arguments of ``AutoConfig.for_model``.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_SIZES = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=128, **_SPECIAL
)
_GPT_SIZES = dict(n_embd=64, n_layer=2, n_head=4, vocab_size=128, **_SPECIAL)
_ALTERNATING = ["sliding_attention", "full_attention"]
_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_DEEPSEEK_YARN = dict(_YARN, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707)
_LONGROPE = {
    "rope_type": "longrope", "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + 1.3 * i for i in range(8)],
}  # fmt: skip
_MLA = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20,
    "num_key_value_heads": 4, "intermediate_size": 96, "moe_intermediate_size": 48, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "max_position_embeddings": 256,
    "rope_scaling": _DEEPSEEK_YARN,
}  # fmt: skip


def _family(model_type: str, **own: Any) -> Config:
    return dict(model_type=model_type, **{**_SIZES, **own})


def _dense(model_type: str, kv_heads: int = 2, **own: Any) -> Config:
    """A gated decoder with grouped-query attention."""
    sizes = {"intermediate_size": 96, "num_key_value_heads": kv_heads}
    return _family(model_type, **{**sizes, **own})


SUPPORTED: dict[str, Config] = {
    "llama1": _dense("llama", kv_heads=4, max_position_embeddings=2048),
    "llama2-gqa": _dense("llama", max_position_embeddings=4096),
    "llama3.1": _dense("llama", rope_theta=5e5, rope_scaling=_LLAMA3_ROPE, max_position_embeddings=512),
    "llama3.2": _dense(
        "llama", head_dim=32, rope_scaling=_LLAMA3_ROPE, max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
    "llama-linear": _dense("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama-dynamic": _dense(
        "llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=64
    ),
    "llama-yarn": _dense("llama", rope_scaling=_YARN, max_position_embeddings=256),
    "smollm2": _dense("llama", num_attention_heads=9, num_key_value_heads=3, hidden_size=144,
                      tie_word_embeddings=True, rope_theta=1e5),
    "mistral": _dense("mistral", sliding_window=6),
    "mixtral": _dense("mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen1.5": _dense("qwen2", kv_heads=4, use_sliding_window=False),
    "qwen2.5-tied": _dense("qwen2", use_sliding_window=False, tie_word_embeddings=True),
    "qwen2-window": _dense("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": _dense("qwen3", head_dim=32),
    "qwen2-moe": _dense("qwen2_moe", num_experts=8, num_experts_per_tok=3,
                        moe_intermediate_size=48, shared_expert_intermediate_size=80),
    "qwen2-moe-window": _dense(
        "qwen2_moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48,
        shared_expert_intermediate_size=80, use_sliding_window=True, sliding_window=6,
        max_window_layers=1,
    ),
    "qwen3-moe": _dense("qwen3_moe", head_dim=32, num_experts=8, num_experts_per_tok=3,
                        moe_intermediate_size=48, norm_topk_prob=True),
    "phi2": _family("phi", intermediate_size=96, partial_rotary_factor=0.5, hidden_act="gelu_new"),
    "phi3": _dense("phi3", kv_heads=4, sliding_window=6, max_position_embeddings=256,
                   original_max_position_embeddings=64),
    "phi3.5-longrope": _dense("phi3", kv_heads=4, sliding_window=262144, rope_scaling=_LONGROPE,
                              max_position_embeddings=256, original_max_position_embeddings=64),
    "phi3.5-moe": _dense(
        "phimoe", num_local_experts=4, num_experts_per_tok=2, attention_bias=True,
        lm_head_bias=True, sliding_window=6, max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_scaling=dict(_LONGROPE, short_mscale=1.24, long_mscale=1.24),
    ),
    "gemma": _dense("gemma", kv_heads=1, head_dim=32, hidden_activation="gelu_pytorch_tanh"),
    "gemma2": _dense("gemma2", head_dim=32, query_pre_attn_scalar=24, sliding_window=6,
                     layer_types=_ALTERNATING, attn_logit_softcapping=5.0,
                     final_logit_softcapping=3.0),
    "gemma3": _dense("gemma3_text", kv_heads=1, head_dim=32, query_pre_attn_scalar=24,
                     sliding_window=6, layer_types=_ALTERNATING,
                     rope_parameters={
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                         "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                     }),
    "command-r": _dense("cohere", kv_heads=4, logit_scale=0.0625, use_qk_norm=False),
    "command-r-plus": _dense("cohere", logit_scale=0.83, use_qk_norm=True),
    "cohere2": _dense("cohere2", logit_scale=0.25, sliding_window=6, layer_types=_ALTERNATING),
    "gpt-oss": _dense("gpt_oss", head_dim=16, num_local_experts=4, num_experts_per_tok=2,
                      sliding_window=6, max_position_embeddings=256, rope_scaling=_YARN),
    "gpt2": dict(model_type="gpt2", n_positions=128, **_GPT_SIZES),
    "gpt-neox": _family("gpt_neox", intermediate_size=96, rotary_pct=0.25,
                        hidden_act="gelu_fast", use_parallel_residual=True),
    "falcon-7b": _family("falcon", multi_query=True, parallel_attn=True, bias=False,
                         new_decoder_architecture=False, alibi=False),
    "falcon-40b": _family("falcon", num_kv_heads=2, new_decoder_architecture=True,
                          parallel_attn=True, bias=False, alibi=False),
    "olmo2": _dense("olmo2", kv_heads=4),
    "starcoder2": _dense("starcoder2", sliding_window=6, hidden_act="gelu_pytorch_tanh"),
    "deepseek-v2": _family("deepseek_v2", q_lora_rank=None, n_shared_experts=2,
                           topk_method="greedy", n_group=1, topk_group=1, **_MLA),
    "deepseek-v3": _family("deepseek_v3", q_lora_rank=24, n_shared_experts=1, n_group=4,
                           topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True, **_MLA),
    "glm4": _dense("glm4", head_dim=32, attention_bias=True, partial_rotary_factor=0.5),
    "granite": _dense("granite", embedding_multiplier=12.0, logits_scaling=16.0,
                      residual_multiplier=0.22, attention_multiplier=0.1),
    "stablelm": _dense("stablelm", kv_heads=4, partial_rotary_factor=0.25, use_qkv_bias=True),
    "opt": _family("opt", ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=128),
}  # fmt: skip

# With the name of the error that says so.
UNSUPPORTED: dict[str, tuple[Config, str]] = {
    "llama4": (
        _dense("llama4_text", head_dim=16, intermediate_size_mlp=96, num_local_experts=4,
               num_experts_per_tok=1, attention_chunk_size=6, interleave_moe_layer_step=1),
        "ChunkedAttention",
    ),
    "qwen3-next": (_dense("qwen3_next", num_hidden_layers=4), "UnsupportedAttention"),
    "bloom": (_family("bloom"), "UnsupportedAttention"),
    "mpt": ({"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4}, "UnsupportedAttention"),
    "gptj": (dict(model_type="gptj", rotary_dim=8, **_GPT_SIZES), "UnsupportedAttention"),
}  # fmt: skip


def tiny(name: str) -> Config:
    """A fresh copy of a configuration by name. KeyError if there is none."""
    return dict(SUPPORTED[name] if name in SUPPORTED else UNSUPPORTED[name][0])
