"""Metadata of a GGUF file → the Hugging Face configuration of the same model.

Every ``<architecture>.*`` entry must be understood: one that is not may change what the model computes,
and refusing the file beats running a slightly different model. transformers' own GGUF import reads
fewer entries (no rotary scaling, no softcaps), which is why this does not use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_file import GGUFFile
from rusteeze.frontend.gguf_rope import ROPE_KEYS, rope_parameters

MAX_SIZE = 1 << 31  # of any axis or count; keeps absurd numbers from reaching model constructors


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture is called and spelled in transformers.

    ``keys`` maps entries (without the architecture's prefix) to attributes of the configuration;
    ``biases`` maps attributes to a tensor whose presence switches them on."""

    model_type: str
    keys: Mapping[str, str]
    biases: Mapping[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


_DECODER = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
}  # fmt: skip
_RMS = {**_DECODER, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_HEADS = {"attention.key_length": "head_dim", "attention.value_length": "head_dim"}
_EXPERTS = {
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip
_GEMMA = {
    **_RMS, **_HEADS, "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
_QKV_BIAS = "blk.0.attn_q.bias"

ARCHITECTURES = {
    "llama": Architecture(
        "llama", _RMS | _HEADS,
        {"attention_bias": _QKV_BIAS, "mlp_bias": "blk.0.ffn_down.bias"},
    ),
    "qwen2": Architecture("qwen2", _RMS | _HEADS),
    "qwen2moe": Architecture(
        "qwen2_moe",
        _RMS | _HEADS | _EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        {"qkv_bias": _QKV_BIAS},
    ),
    "qwen3": Architecture("qwen3", _RMS | _HEADS, {"attention_bias": _QKV_BIAS}),
    "qwen3moe": Architecture(
        "qwen3_moe", _RMS | _HEADS | _EXPERTS, {"attention_bias": _QKV_BIAS}, {"norm_topk_prob": True}
    ),
    "granite": Architecture(
        "granite",
        _RMS | _HEADS | {
            "attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling",
        },
        {"attention_bias": _QKV_BIAS, "mlp_bias": "blk.0.ffn_down.bias"},
    ),
    "gemma": Architecture("gemma", _RMS | _HEADS),
    "gemma2": Architecture("gemma2", _GEMMA),
    "gemma3": Architecture("gemma3_text", _GEMMA),
    "phi3": Architecture("phi3", _RMS | _HEADS | {"attention.sliding_window": "sliding_window"}),
    "stablelm": Architecture(
        "stablelm",
        _DECODER | {
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        {"use_qkv_bias": _QKV_BIAS},
    ),
    "starcoder2": Architecture(
        "starcoder2", _DECODER | {"attention.layer_norm_epsilon": "norm_epsilon"}, {"use_bias": _QKV_BIAS}
    ),
    "nemotron": Architecture(
        "nemotron", _DECODER | _HEADS | {"attention.layer_norm_epsilon": "norm_eps"},
        {"attention_bias": _QKV_BIAS, "mlp_bias": "blk.0.ffn_down.bias"},
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "context_length": "n_positions", "block_count": "n_layer", "embedding_length": "n_embd",
            "feed_forward_length": "n_inner", "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
    ),
}  # fmt: skip

_MIXTRAL = Architecture(
    "mixtral",
    _RMS | _HEADS | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
)
_MISTRAL = Architecture("mistral", _RMS | _HEADS | {"attention.sliding_window": "sliding_window"})

_INERT = {"vocab_size", "tensor_data_layout"}  # the embedding says the first, nothing uses the second
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def architecture_name(file: GGUFFile) -> str:
    """``general.architecture``. CheckpointError when it is missing or not one of ARCHITECTURES."""
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{file.path} has architecture {name!r}; supported in GGUF files: {known}")
    return str(name)


def gguf_config(file: GGUFFile) -> PreTrainedConfig:
    """The configuration of the model in the file. CheckpointError when an entry is missing, absurd or
    not understood."""
    name = architecture_name(file)
    arch = _spelling(name, file)
    values = _values(file, name, arch)
    values |= {attribute: tensor in file.tensors for attribute, tensor in arch.biases.items()}
    values |= arch.fixed | _vocabulary(file) | _token_ids(file)
    if name in _LAYERS_OF_27B and values["num_hidden_layers"] == _LAYERS_OF_27B[name]:
        # Only these sizes scale attention by something else than head_dim; llama.cpp tells them apart so.
        values["query_pre_attn_scalar"] = values["hidden_size"] // values["num_attention_heads"]
    values |= rope_parameters(file, name, arch.model_type, values)
    try:
        return AutoConfig.for_model(arch.model_type, **values)
    except Exception as e:  # whatever a configuration class objects to
        raise CheckpointError(f"{file.path} describes no sound {arch.model_type} model: {_line(e)}") from e


def _spelling(name: str, file: GGUFFile) -> Architecture:
    """llama.cpp files Mistral and Mixtral under "llama"."""
    if name == "llama" and file.metadata.get("llama.expert_count"):
        return _MIXTRAL
    if name == "llama" and "llama.attention.sliding_window" in file.metadata:
        return _MISTRAL
    return ARCHITECTURES[name]


def _values(file: GGUFFile, name: str, arch: Architecture) -> dict[str, Any]:
    """Attributes named by the file's entries, each a sane number."""
    values: dict[str, Any] = {}
    for key, value in file.metadata.items():
        entry = key.removeprefix(f"{name}.")
        if entry == key or entry in _INERT or entry in ROPE_KEYS:
            continue
        if entry not in arch.keys:
            raise CheckpointError(f"{file.path} states {key}, whose meaning for {arch.model_type} is unknown here")
        attribute, number = arch.keys[entry], _number(file, key, value)
        if values.setdefault(attribute, number) != number:
            raise CheckpointError(f"{file.path} gives two values for {attribute}: {values[attribute]} and {number}")
    _require(file, name, arch, values)
    return values


def _require(file: GGUFFile, name: str, arch: Architecture, values: Mapping[str, Any]) -> None:
    optional = {"head_dim", "sliding_window", "num_key_value_heads", *_GEMMA, *_EXPERTS.values()}
    for entry, attribute in arch.keys.items():
        if attribute not in values and attribute not in optional:
            raise CheckpointError(f"{file.path} lacks {name}.{entry}; convert the model again")
    layers = values.get("num_hidden_layers", values.get("n_layer"))
    if layers > len(file.tensors):
        raise CheckpointError(f"{file.path} claims {layers} layers but holds {len(file.tensors)} tensors")


def _number(file: GGUFFile, key: str, value: Any) -> int | float | bool:
    """One number; an array with one value per layer counts when all are equal."""
    if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
        value = value[0].item()
    if isinstance(value, float) and math.isfinite(value):
        return float(str(np.float32(value)))  # 1e-05, as in config.json, not 9.999999747378752e-06
    if not isinstance(value, int) or not (isinstance(value, bool) or 0 <= value <= MAX_SIZE):
        raise CheckpointError(f"{file.path} states {key} = {str(value)[:60]}, which is no usable number")
    return value


def _vocabulary(file: GGUFFile) -> dict[str, Any]:
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} holds no token_embd.weight, so it is no language model")
    rows = file.tensors["token_embd.weight"].shape[0]
    return {"vocab_size": rows, "tie_word_embeddings": "output.weight" not in file.tensors}


def _token_ids(file: GGUFFile) -> dict[str, int | None]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: _token_id(file, f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}


def _token_id(file: GGUFFile, key: str) -> int | None:
    value = file.metadata.get(key)
    rows = file.tensors["token_embd.weight"].shape[0]
    if value is not None and (type(value) is not int or not 0 <= value < rows):
        raise CheckpointError(f"{file.path} states {key} = {value!r}, but has {rows} tokens")
    return value


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:200]
