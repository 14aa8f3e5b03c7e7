"""Rotary positions and causal attention over a cache.

Attention is the only op with state: it appends k and v of the step's tokens to its layer's cache and
lets each token see its own sequence up to itself. The interpreter keeps that state in KVState. What a
cache cannot hold exactly is rounded on its way in: that is part of the op's meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rusteeze.ir.op import declare
from rusteeze.ir.ops.elementwise import bf16_bits, bf16_values
from rusteeze.ir.ops.linear import quantize_rows
from rusteeze.ir.types import TensorType

Array = np.ndarray
STYLES = ("half", "inter", "inter_to_half")
CACHES = ("f32", "bf16", "int8")
KEY_GROUP = 32


def _infer_rope(
    x: TensorType, cos: TensorType, sin: TensorType, style: str, width: int, at_end: bool
) -> TensorType:
    if style not in STYLES:
        raise TypeError(f"unknown rope style {style!r}")
    last = x.shape[-1]
    if not isinstance(last, int) or width > last or width % 2:
        raise TypeError(f"cannot rotate {width} of {last} elements")
    if x.rank != 3 or cos != sin or cos.shape != (x.shape[0], width // 2):
        raise TypeError("wants x[T, H, D] and tables [T, width/2]")
    return x


def rope(x: Array, cos: Array, sin: Array, style: str, width: int, at_end: bool) -> Array:
    """Rotate pairs of the first (or last) ``width`` elements of each head (Su et al. 2021, RoFormer).

    x [T, H, D]; cos, sin [T, width/2]. The pairs are (i, i + width/2) for "half" and (2i, 2i+1) for
    "inter"; "inter_to_half" reads the latter and writes the former order (DeepSeek)."""
    lo = x.shape[-1] - width if at_end else 0
    part = x[..., lo : lo + width]
    h = width // 2
    if style == "half":
        a, b = part[..., :h], part[..., h:]
    else:
        a, b = part[..., 0::2], part[..., 1::2]
    c, s = cos[:, None, :], sin[:, None, :]
    first, second = a * c - b * s, b * c + a * s
    rotated = np.empty_like(part)
    if style == "inter":
        rotated[..., 0::2], rotated[..., 1::2] = first, second
    else:
        rotated[..., :h], rotated[..., h:] = first, second
    return np.concatenate([x[..., :lo], rotated, x[..., lo + width :]], -1)


declare(
    "rope(x, cos, sin) {style: str = 'half', width: int, at_end: bool = False}",
    infer=_infer_rope, reference=rope,
)  # fmt: skip


@dataclass
class KVState:
    """What attention remembers, for the interpreter: per layer and sequence all keys and values so far.

    ``batch`` says how the step's rows fall to sequences: [(sequence id, number of rows), ...]."""

    batch: list[tuple[int, int]] = field(default_factory=list)
    keys: dict[tuple[int, int], Array] = field(default_factory=dict)
    values: dict[tuple[int, int], Array] = field(default_factory=dict)

    def append(self, layer: int, sequence: int, k: Array, v: Array) -> tuple[Array, Array]:
        at = (layer, sequence)
        self.keys[at] = np.concatenate([self.keys[at], k]) if at in self.keys else k
        self.values[at] = np.concatenate([self.values[at], v]) if at in self.values else v
        return self.keys[at], self.values[at]


def _values_type(k: TensorType, v: TensorType | None, value_width: int) -> TensorType:
    if v is not None:
        if value_width:
            raise TypeError("value_width is for values that are part of the keys")
        return v
    if k.rank != 3 or not 0 < value_width <= k.shape[2]:  # type: ignore[operator]
        raise TypeError("without values wants a value_width of at most that of keys[T, Hk, D]")
    return k.with_shape(*k.shape[:2], value_width)


def _infer_attention(
    q: TensorType, k: TensorType, v: TensorType | None, sinks: TensorType | None, value_width: int,
    cache: str, **_: float,
) -> TensorType:  # fmt: skip
    if cache not in CACHES:
        raise TypeError(f"there is no cache of {cache!r}, only {', '.join(CACHES)}")
    if v is None and cache == "int8":
        raise TypeError("values that are part of the keys are not kept as int8")
    v = _values_type(k, v, value_width)
    if not q.rank == k.rank == v.rank == 3 or q.shape[0] != k.shape[0] or k.shape[:2] != v.shape[:2]:
        raise TypeError("wants q[T, H, D], k[T, Hk, D], v[T, Hk, Dv]")
    if q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:  # type: ignore[operator]
        raise TypeError("query heads must be a multiple of key heads, of the same width")
    if sinks is not None and sinks.shape != q.shape[1:2]:
        raise TypeError("wants one sink per query head")
    return q.with_shape(q.shape[0], q.shape[1], v.shape[2])


def key_group(width: int) -> int:
    """Dims of a key that share a scale in an int8 cache: where models have outliers, they are in few dims."""
    return width if width % KEY_GROUP else KEY_GROUP


def cached(x: Array, cache: str, group: int) -> Array:
    """Heads [T, H, D] as a cache gives them back: float32, bf16, or int8 with a scale per token, head and
    ``group`` of dims."""
    if cache == "bf16":
        return bf16_values(bf16_bits(x))
    if cache == "int8":
        codes, scale = quantize_rows(x, group)
        x = codes.astype(np.float32) * np.repeat(scale, group, -1)
    return x


def attend(
    q: Array, k: Array, v: Array | None, sinks: Array | None, *, layer: int, scale: float, window: int,
    softcap: float, value_width: int, cache: str, state: KVState,
) -> Array:  # fmt: skip
    """Causal attention (Vaswani et al. 2017) of the step's rows over their sequences.

    ``window`` > 0 lets a token see that many keys including itself; ``sinks`` adds one logit per head
    to the softmax's denominator only; ``cache`` says as what keys and values are kept. Without ``v`` the
    values are the first ``value_width`` elements of the keys as the cache holds them, which then is all
    that it holds."""
    v = k[..., :value_width] if v is None else v
    out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
    group = q.shape[1] // k.shape[1]
    k, v = cached(k, cache, key_group(k.shape[2])), cached(v, cache, v.shape[2])
    row = 0
    for sequence, n in state.batch:
        rows = slice(row, row + n)
        row += n
        keys, values = state.append(layer, sequence, k[rows], v[rows])
        total = len(keys)
        logits = np.einsum("qhd,khd->hqk", q[rows], np.repeat(keys, group, 1)) * scale
        if softcap:
            logits = np.tanh(logits / softcap) * softcap
        position = np.arange(total - n, total)[:, None]
        key = np.arange(total)[None]
        hidden = key > position
        if window > 0:
            hidden |= key <= position - window
        logits = np.where(hidden, -np.inf, logits)
        top = logits.max(-1, keepdims=True)
        if sinks is not None:
            top = np.maximum(top, sinks[:, None, None])
        p = np.exp(logits - top)
        denominator = p.sum(-1, keepdims=True)
        if sinks is not None:
            denominator = denominator + np.exp(sinks[:, None, None] - top)
        out[rows] = np.einsum("hqk,khd->qhd", p / denominator, np.repeat(values, group, 1))
    return out


declare(
    "attention(q, k, v?, sinks?) {layer: int, scale: float, window: int = 0, softcap: float = 0.0,"
    " value_width: int = 0, cache: str = 'f32'}",
    infer=_infer_attention, reference=attend, traits="stateful",
)  # fmt: skip
