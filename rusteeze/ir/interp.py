"""The reference interpreter: runs a graph in numpy, one op at a time. It defines what a graph means.

Slow and obvious on purpose. Weights come from a function, so that nothing is loaded that is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rusteeze.ir.graph import Graph, Node, Value
from rusteeze.ir.ops.attention import KVState

Array = np.ndarray


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    weights: Callable[[str], Array] | Mapping[str, Array],
    state: KVState | None = None,
) -> list[Array]:
    """Outputs of ``graph``. KeyError when an input is missing; attention needs a ``state``."""
    load = weights if callable(weights) else weights.__getitem__
    env: dict[Value, Any] = {v: np.asarray(inputs[v.name]) for v in graph.inputs}
    static: dict[Value, Array] = {}

    def get(v: Value | None) -> Any:
        if v is None:
            return None
        if v.is_weight:
            if v not in static:
                static[v] = np.asarray(load(v.name))
            return static[v]
        return env[v]

    for node in graph.nodes:
        results = evaluate(node, [get(v) for v in node.operands], state)
        env.update(zip(node.results, results, strict=True))
    return [get(v) for v in graph.outputs]


def evaluate(node: Node, operands: list[Any], state: KVState | None = None) -> tuple[Any, ...]:
    """The results of one node on concrete operands."""
    if node.body is not None:
        names = [v.name for v in node.body.inputs]
        return tuple(interpret(node.body, dict(zip(names, operands, strict=True)), {}, state))
    extra = {"state": state} if "stateful" in node.op.traits else {}
    assert node.op.reference is not None
    out = node.op.reference(*operands, **node.attrs, **extra)
    return out if isinstance(out, tuple) else (out,)
