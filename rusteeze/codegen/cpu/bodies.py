"""Fused bodies: pointwise nodes of a region, evaluated on lanes in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rusteeze.codegen.cpu.emit import Emitter, Expr, f32, i32, splat
from rusteeze.codegen.cpu.vector_math import OPS
from rusteeze.ir import Node, Value

Env = dict[Value, Any]


def constant(node: Node, lanes: int) -> Expr:
    value = float(node.attrs["value"])  # type: ignore[arg-type]
    scalar = f32(value) if node.attrs["dtype"] == "f32" else i32(int(value))
    return splat(scalar, lanes)


def evaluate(k: Emitter, nodes: Sequence[Node], env: Env, lanes: int, load: Callable[[Value], Expr]) -> None:
    """Compute ``nodes`` in order into env; operands that are not there are loaded."""

    def get(v: Value | None) -> Expr:
        assert v is not None
        if v not in env:
            if v.op == "const":
                assert v.node is not None
                env[v] = constant(v.node, lanes)
            else:
                env[v] = load(v)
        return env[v]

    for node in nodes:
        if node.op.name == "const" or node.result in env:
            continue
        env[node.result] = OPS[node.op.name](k, *map(get, node.operands), **node.attrs)
