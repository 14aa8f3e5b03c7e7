"""Changes that GGUF converters make to weights, and how each is undone.

A change works on a decoded family. Those that only move rows keep codes and scales as they are; those
that touch numbers or move columns need plain numbers first. Source: the conversion scripts of
llama.cpp, and transformers' GGUF import, with which the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rusteeze.weights import Dense, Weight


@dataclass(frozen=True)
class Change:
    """``apply`` undoes a converter's change; ``decodes`` says that it returns f32 for quantised input,
    ``computes`` that it returns f32 for any input."""

    apply: Callable[[Weight], Weight]
    decodes: bool = False
    computes: bool = False

    def format(self, stored: str, dense: bool) -> str:
        """The format of the result for a weight stored in that format."""
        return "f32" if self.computes or (self.decodes and not dense) else stored


def decoded(weight: Weight) -> Dense:
    """The same numbers as a plain array; exact."""
    return weight if isinstance(weight, Dense) else Dense(weight.to_f32(), "f32")


def change_of(architecture: str, tensor: str, config: Any) -> Change | None:
    """The change that converters of that architecture make to that tensor, or None."""
    if architecture in ("llama", "granite") and (".attn_q." in tensor or ".attn_k." in tensor):
        heads = config.num_attention_heads if ".attn_q." in tensor else config.num_key_value_heads
        return Change(lambda w: w.rows(_half_from_interleaved(w, heads)))
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and tensor.endswith("norm.weight"):
        return _MINUS_ONE
    if architecture == "gpt2" and tensor.endswith(_GPT2_TRANSPOSED):
        return _TRANSPOSED
    return None


def _half_from_interleaved(weight: Weight, heads: int) -> np.ndarray:
    """Converters interleave the halves of each rotary head; this row index brings them back."""
    rows = weight.shape[0]  # also of a bias
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(rows)


_GPT2_TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
_TRANSPOSED = Change(lambda w: decoded(w).transpose(), decodes=True)
_MINUS_ONE = Change(lambda w: Dense(w.to_f32() - np.float32(1), "f32"), computes=True)
