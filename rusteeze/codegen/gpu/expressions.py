"""Pointwise IR ops as Triton expressions, and bodies of regions as lines of a kernel.

Everything is computed in float32 or int32: what lies in memory as bf16 is widened when it is loaded and
rounded when it is stored. Triton's interpreter computes on the bits of a bf16 otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rusteeze.codegen.gpu.source import Source, literal
from rusteeze.ir import Node, Value
from rusteeze.ir.types import DType

Env = dict[Value, str]
Expression = Callable[..., str]

_CALLS = {
    "abs": "tl.abs", "exp": "tl.exp", "log": "tl.log", "sqrt": "tl.sqrt", "rsqrt": "tl.rsqrt", "sin": "tl.sin",
    "cos": "tl.cos", "erf": "tl.erf", "tanh": "fn.tanh", "sigmoid": "fn.sigmoid", "silu": "fn.silu",
    "gelu": "fn.gelu", "gelu_tanh": "fn.gelu_tanh", "softplus": "fn.softplus", "pow": "fn.power",
    "minimum": "tl.minimum", "maximum": "tl.maximum",
}  # fmt: skip
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "logical_and": "&", "logical_or": "|",
}  # fmt: skip
_CAST = {"f32": "tl.float32", "i32": "tl.int32", "bool": "tl.int1"}


def _call(name: str) -> Expression:
    return lambda *xs: f"{name}({', '.join(xs)})"


def _infix(sign: str) -> Expression:
    return lambda a, b: f"{a} {sign} {b}"


def _clamp(x: str, min: float, max: float) -> str:
    return f"tl.minimum(tl.maximum({x}, {literal(min)}), {literal(max)})"


OPS: dict[str, Expression] = {
    **{op: _call(name) for op, name in _CALLS.items()},
    **{op: _infix(sign) for op, sign in _INFIX.items()},
    "neg": lambda x: f"-{x}",
    "relu": lambda x: f"tl.maximum({x}, 0)",
    "reciprocal": lambda x: f"1.0 / {x}",
    "div": lambda a, b: f"{a} / {b}",
    "remainder": lambda a, b: f"{a} - tl.floor({a} / {b}) * {b}",
    "logical_not": lambda x: f"{x} == 0",
    "where": lambda c, a, b: f"tl.where({c}, {a}, {b})",
    "clamp": _clamp,
    "cast": lambda x, dtype: f"({x}).to({_CAST[dtype]})",
    "full_like": lambda x, value, dtype: f"tl.full({x}.shape, {literal(value)}, {_CAST[dtype]})",
    "glu": lambda g, u, act: f"{OPS[act](g)} * {u}",
    "softcap": lambda x, cap: f"fn.tanh({x} * {literal(1 / cap)}) * {literal(cap)}",
    "quantize": lambda x, to, group: x,
}


def supports(node: Node) -> bool:
    """Whether a pointwise node has an expression."""
    name, result = node.op.name, node.results[0].type.dtype
    if name == "const":
        return True
    if name == "quantize":
        return node.attrs["to"] == "bf16"
    if name in ("div", "remainder") and result is DType.i32:
        return False
    return name in OPS and (name not in ("cast", "full_like") or node.attrs["dtype"] in _CAST)


def constant(node: Node) -> str:
    value: Any = node.attrs["value"]
    return literal(float(value) if node.attrs["dtype"] == "f32" else int(value))


def evaluate(k: Source, nodes: Iterable[Node], env: Env, load: Callable[[Value], str]) -> None:
    """Compute ``nodes`` in order into env; operands that are not there are loaded."""

    def get(v: Value) -> str:
        if v not in env:
            if v.op == "const":
                assert v.node is not None
                env[v] = constant(v.node)
            else:
                env[v] = load(v)
        return env[v]

    for node in nodes:
        if node.op.name == "const" or node.result in env:
            continue
        env[node.result] = k.let(OPS[node.op.name](*map(get, node.inputs()), **node.attrs))
