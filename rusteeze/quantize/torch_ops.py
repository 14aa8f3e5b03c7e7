"""What the ops of the IR mean, computed by torch: as the interpreter says, but fast and with gradients.

Quantising runs a graph over a whole text and keeps what enters each product. The interpreter loops
over tokens, and compiled kernels show no values between them; torch does both on every core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from rusteeze.ir import Node
from rusteeze.quantize.products import linear

Tensor = torch.Tensor
Compute = Callable[..., Any]

_DTYPES = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8,
    "u8": torch.uint8, "i32": torch.int32, "bool": torch.bool,
}  # fmt: skip


def evaluate(node: Node, operands: list[Tensor | None]) -> tuple[Tensor, ...]:
    """The results of one node of a raised graph. KeyError for an op that only lowered graphs have."""
    out = OPS[node.op.name](*operands, **node.attrs)
    return out if isinstance(out, tuple) else (out,)


def _softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *, layer: int, scale: float, window: int,
    softcap: float, value_width: int, cache: str,
) -> Tensor:  # fmt: skip
    """One whole sequence: q [T, H, D], k [T, Hk, D], v [T, Hk, Dv]. Raised graphs have values of their own
    and a float32 cache: ``value_width`` and ``cache`` say so."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    tokens = torch.arange(q.shape[1])
    age = tokens[:, None] - tokens
    seen = (age >= 0) & (age < window) if window > 0 else age >= 0
    logits = q @ k.transpose(1, 2) * scale
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        logits = torch.cat([logits, sinks[:, None, None].expand(-1, len(tokens), 1)], -1)
    shares = logits.softmax(-1)[..., : len(tokens)]
    return (shares @ v).transpose(0, 1)


def _rope(x: Tensor, cos: Tensor, sin: Tensor, style: str, width: int, at_end: bool) -> Tensor:
    start = x.shape[-1] - width if at_end else 0
    part, half = x[..., start : start + width], width // 2
    a, b = (part[..., :half], part[..., half:]) if style == "half" else (part[..., 0::2], part[..., 1::2])
    c, s = cos[:, None, :], sin[:, None, :]
    first, second = a * c - b * s, b * c + a * s
    if style == "inter":
        rotated = torch.stack([first, second], -1).flatten(-2)
    else:
        rotated = torch.cat([first, second], -1)
    return torch.cat([x[..., :start], rotated, x[..., start + width :]], -1)


def _expert_linear(x: Tensor, idx: Tensor, w: Tensor, b: Tensor | None, transposed: bool) -> Tensor:
    n = w.shape[2] if transposed else w.shape[1]
    out = x.new_zeros((*idx.shape, n))
    for expert in idx.unique().tolist():
        token, slot = (idx == expert).nonzero(as_tuple=True)
        rows = x[token] if x.dim() == 2 else x[token, slot]
        y = rows @ w[expert] if transposed else linear(rows, w[expert])
        out[token, slot] = y if b is None else y + b[expert]
    return out


def _rms_norm(x: Tensor, w: Tensor | None, eps: float, offset: float) -> Tensor:
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if w is None else y * (w + offset)


def _layer_norm(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    y = c * torch.rsqrt((c * c).mean(-1, keepdim=True) + eps)
    y = y if w is None else y * w
    return y if b is None else y + b


def _topk(x: Tensor, k: int, axis: int) -> tuple[Tensor, Tensor]:
    order = torch.argsort(-x, dim=axis, stable=True).narrow(axis, 0, k)
    return torch.take_along_dim(x, order, axis), order.int()


def _slice(x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    index = [slice(None)] * x.dim()
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def _sizes(shape: tuple[int | str, ...]) -> list[int]:
    return [d if isinstance(d, int) else -1 for d in shape]


def _broadcast_to(x: Tensor, shape: tuple[int | str, ...]) -> Tensor:
    return x.expand([d if isinstance(d, int) else x.shape[i] for i, d in enumerate(shape)])


UNARY: dict[str, Compute] = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal, "sin": torch.sin, "cos": torch.cos,
    "tanh": torch.tanh, "erf": torch.erf, "sigmoid": torch.sigmoid, "silu": F.silu, "relu": F.relu,
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": lambda x: torch.logaddexp(x, torch.zeros(())), "logical_not": torch.logical_not,
}  # fmt: skip
BINARY: dict[str, Compute] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
    "minimum": torch.minimum, "maximum": torch.maximum, "remainder": torch.remainder, "lt": torch.lt,
    "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or,
}  # fmt: skip
OPS: dict[str, Compute] = UNARY | BINARY | {
    "where": torch.where,
    "clamp": lambda x, min, max: x.clamp(min, max),
    "cast": lambda x, dtype: x.to(_DTYPES[dtype]),
    "const": lambda value, dtype: torch.tensor(value, dtype=_DTYPES[dtype]),
    "full_like": lambda x, value, dtype: torch.full_like(x, value, dtype=_DTYPES[dtype]),
    "glu": lambda g, u, act: UNARY[act](g) * u,
    "softcap": lambda x, cap: torch.tanh(x / cap) * cap,
    "linear": linear, "expert_linear": _expert_linear,
    "rms_norm": _rms_norm, "layer_norm": _layer_norm, "rope": _rope, "attention": _softmax_attention,
    "sum": lambda x, axis, keepdim: x.sum(axis, keepdim),
    "mean": lambda x, axis, keepdim: x.mean(axis, keepdim),
    "max": lambda x, axis, keepdim: x.amax(axis, keepdim),
    "min": lambda x, axis, keepdim: x.amin(axis, keepdim),
    "softmax": lambda x, axis: x.softmax(axis),
    "cumsum": lambda x, axis: x.cumsum(axis),
    "topk": _topk,
    "reshape": lambda x, shape: x.reshape(_sizes(shape)),
    "permute": lambda x, perm: x.permute(perm),
    "slice": _slice,
    "concat": lambda *xs, axis: torch.cat(xs, axis),
    "broadcast_to": _broadcast_to,
    "embedding": lambda ids, table: table[ids.long()],
    "gather_rows": lambda x, rows: x[rows.long()],
    "gather_columns": lambda x, columns: x[..., columns.long()],
    "gather": lambda x, index, axis: torch.take_along_dim(x, index.long(), axis),
    "scatter": lambda x, index, src, axis: x.scatter(axis, index.long(), src.expand(index.shape)),
}  # fmt: skip
