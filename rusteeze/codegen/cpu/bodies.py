"""Fused bodies: pointwise nodes of a region, evaluated on lanes in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rusteeze.codegen.cpu.emit import Emitter, Expr, f32, i32, splat
from rusteeze.codegen.cpu.vector_math import OPS
from rusteeze.ir import Graph, Node, Value, make_node

Env = dict[Value, Any]


def as_body(node: Node) -> Graph:
    """A region of one node: its body, or a graph with just that node. Constants move inside."""
    if node.body is not None:
        return node.body
    body = Graph(node.op.name)
    operands: list[Value | None] = []
    for i, v in enumerate(node.operands):
        if v is None:
            operands.append(None)
        elif v.op == "const":
            assert v.node is not None
            operands.append(body.add("const", **v.node.attrs))
        else:
            operands.append(body.input(f"x{i}", v.type))
    inner = make_node(node.op.name, operands, dict(node.attrs))
    body.nodes.append(inner)
    body.outputs = list(inner.results)
    return body


def outer_operands(node: Node) -> list[Value]:
    """The operands that are bound to the inputs of ``as_body(node)``, in order."""
    if node.body is not None:
        return list(node.inputs())
    return [v for v in node.operands if v is not None and v.op != "const"]


def body_key(body: Graph) -> str:
    """What two equal bodies have in common, wherever in the model they come from."""
    number: dict[Value, int] = {v: i for i, v in enumerate(body.inputs)}
    rows = []
    for node in body.nodes:
        operands = [None if v is None else number[v] for v in node.operands]
        rows.append((node.op.name, operands, sorted(node.attrs.items()), [str(r.type) for r in node.results]))
        for r in node.results:
            number[r] = len(number)
    types = [str(v.type) for v in body.inputs]
    return f"{types}{rows}{[number[v] for v in body.outputs]}"


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
