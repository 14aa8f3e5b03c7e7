"""Rotary position parameters of a GGUF file, in the spelling of transformers' ``rope_parameters``.

GGUF states linear and yarn scaling as metadata, but Llama-3 scaling and longrope only as tensors of
factors by which each frequency is divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_file import GGUFFile

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are parameters of the rotary tables and no weights of the model."""

_SCALING = {
    "factor": "factor", "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow",
}  # fmt: skip
_INERT = {"finetuned"}
ROPE_KEYS = {
    "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scaling.type",
    *(f"rope.scaling.{key}" for key in (*_SCALING, *_INERT)),
}  # fmt: skip
"""Entries that are understood here, without the architecture's prefix."""

MAX_HEAD_WIDTH = 1 << 16
_PARTIAL = {"phi3", "stablelm", "nemotron"}  # model types that rotate only a part of each head


def rope_parameters(
    file: GGUFFile, prefix: str, model_type: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Attributes to add to ``values``, the other attributes of the configuration: ``rope_parameters``
    and, where the file states the width of a head only through its rotary part, ``head_dim``."""
    if model_type == "gpt2":
        return {}
    added = _width(file, prefix, model_type, values)
    rope = {key: added.pop(key) for key in ("partial_rotary_factor",) if key in added}
    if (theta := _entry(file, prefix, "freq_base")) is not None:
        rope["rope_theta"] = theta
    elif model_type == "gemma3_text":
        rope["rope_theta"] = 1e6  # llama.cpp's default
    rope |= _scaling(file, prefix)
    rope |= _factors(file, prefix, model_type, {**values, **added, "rope_parameters": rope})
    if rope.get("rope_type") == "longrope" and "original_max_position_embeddings" in rope:
        added["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    if model_type == "gemma3_text":
        local = _entry(file, prefix, "freq_base_swa") or 1e4
        nested = {"full_attention": {"rope_type": "default", **rope}}
        nested["sliding_attention"] = {"rope_type": "default", "rope_theta": local}
        return {**added, "rope_parameters": nested}
    return {**added, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **rope}}


def _entry(file: GGUFFile, prefix: str, key: str) -> Any:
    value = file.metadata.get(f"{prefix}.rope.{key}")
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if value is not None and not isinstance(value, (int, str)):
        raise CheckpointError(f"{file.path} states {prefix}.rope.{key} as an array")
    return value


def _width(file: GGUFFile, prefix: str, model_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    rotated = _entry(file, prefix, "dimension_count")
    heads = values["num_attention_heads"]
    if not heads or (rotated is not None and not 0 < rotated <= MAX_HEAD_WIDTH):
        raise CheckpointError(f"{file.path} states {heads} heads, {rotated} rotated dimensions of each")
    width = values.get("head_dim") or values["hidden_size"] // heads
    if rotated is None or rotated == width:
        return {}
    if model_type in _PARTIAL:
        return {"partial_rotary_factor": rotated / width}
    if "head_dim" in values:
        raise CheckpointError(f"{file.path} rotates {rotated} of {width} dimensions, unknown for {model_type}")
    return {"head_dim": rotated}


def _scaling(file: GGUFFile, prefix: str) -> dict[str, Any]:
    kind = _entry(file, prefix, "scaling.type")
    if kind in (None, "none"):
        return {}
    if kind not in ("linear", "yarn", "longrope"):
        raise CheckpointError(f"{file.path} scales rotary positions by {kind!r}, which is not supported")
    return {"rope_type": kind, **_stated(file, prefix)}


def _stated(file: GGUFFile, prefix: str) -> dict[str, Any]:
    stated = {name: _entry(file, prefix, f"scaling.{key}") for key, name in _SCALING.items()}
    return {name: value for name, value in stated.items() if value is not None}


def _factors(
    file: GGUFFile, prefix: str, model_type: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Scaling that is stated by tensors."""
    present = [name for name in ROPE_TENSORS if name in file.tensors]
    if not present:
        return {}
    if present == ["rope_freqs.weight"]:
        return _llama3(file, model_type, values)
    if len(present) != 2:
        raise CheckpointError(f"{file.path} holds {' and '.join(present)}, an unknown rotary scaling")
    long, short = (_f32(file, name) for name in present)
    stated = _stated(file, prefix)  # without a scaling type: the tensors say it
    if "original_max_position_embeddings" not in stated:
        raise CheckpointError(f"{file.path} lacks {prefix}.rope.scaling.original_context_length")
    factors = {"long_factor": long.tolist(), "short_factor": short.tolist()}
    return {"rope_type": "longrope", **stated, **factors}


def _f32(file: GGUFFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    if info.type.name != "F32" or len(info.shape) != 1:
        raise CheckpointError(f"{file.path} holds {name} as {info.type.name}{list(info.shape)}")
    return file.blocks(name).view("<f4")


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _llama3(file: GGUFFile, model_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The factors are the outcome of Llama 3's rule. All its models share three of the four numbers of
    that rule; the fourth is the largest factor. The guess counts only if it reproduces the tensor."""
    factors = _f32(file, "rope_freqs.weight")
    guess = {"rope_type": "llama3", "factor": round(float(factors.max()), 4), **_LLAMA3}
    rope = {"rope_theta": 1e4, **values["rope_parameters"]}
    plain, scaled = (_frequencies(model_type, {**values, "rope_parameters": rope | kind})
                     for kind in ({"rope_type": "linear", "factor": 1.0}, guess))  # fmt: skip
    if plain.shape != factors.shape or not np.allclose(plain / scaled, factors, rtol=1e-4):
        raise CheckpointError(f"{file.path} scales rotary positions by unknown factors (rope_freqs.weight)")
    return guess


def _frequencies(model_type: str, values: Mapping[str, Any]) -> np.ndarray:
    """Inverse frequencies that transformers computes, f32 [head_dim / 2]."""
    config = AutoConfig.for_model(model_type, **values)
    kind = config.rope_parameters["rope_type"]
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].numpy()
