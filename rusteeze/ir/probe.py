"""Do two expressions compute the same? Asked by running both on drawn data.

A rewrite that was found by its spelling is only accepted if it survives this. The data is chosen so that
small terms show: the rows of a tensor differ in magnitude, so that an epsilon of 1e-6 matters in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rusteeze.ir.graph import Graph, Node, Value, producers
from rusteeze.ir.interp import evaluate, interpret
from rusteeze.ir.ops.attention import KVState
from rusteeze.ir.types import ROWS, TOKENS, Dim, DType, TensorType

Array = np.ndarray
SIZES: dict[Dim, int] = {TOKENS: 3, ROWS: 2}
MAGNITUDES = (1.0, 1e-3, 20.0)  # of row 0, 1, 2
TOLERANCE = 1e-4  # relative to the largest element of a row


def concrete_shape(type: TensorType) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else SIZES[d] for d in type.shape)


def draw(type: TensorType, rng: np.random.Generator, *, even: bool = False) -> Array:
    """Random data of a type; named dimensions get the sizes above. ``even``: all rows of magnitude 1.

    Integers are valid indices: different ones along T, the last tokens along R, else 0 or 1. Static
    matrices are scaled so that products with them keep their magnitude."""
    shape = concrete_shape(type)
    if type.dtype is DType.i32 and type.shape in ((TOKENS,), (ROWS,)):
        return np.arange(SIZES[TOKENS], dtype=np.int32)[::-1][: shape[0]]
    if not type.dtype.is_float:
        return rng.integers(0, 2, shape).astype(type.dtype.numpy)
    if type.dtype is DType.bf16:
        raise TypeError("bf16 values are not probed")
    data = rng.standard_normal(shape)
    if type.is_static and type.rank > 1:
        data /= shape[-1] ** 0.5
    if type.shape and not isinstance(type.shape[0], int) and not even:
        scale = np.resize(MAGNITUDES, shape[0])
        data *= scale.reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray(data, type.dtype.numpy)


class Probe:
    """One set of drawn data. Values that are not computed are drawn when first needed; ``even``: see draw."""

    def __init__(
        self, bound: Mapping[Value, Array] | None = None, seed: int = 0, *, even: bool = False
    ) -> None:
        self.rng, self.even = np.random.default_rng(seed), even
        self.known: dict[Value, Any] = dict(bound or {})

    def bind(self, values: Iterable[Value]) -> None:
        for v in values:
            if v not in self.known:
                self.known[v] = draw(v.type, self.rng, even=self.even)

    def value(self, wanted: Value) -> Array:
        """``wanted`` on the drawn data, with everything between it and the bound values computed."""
        for node in in_order(producers([wanted], self.known.__contains__)):
            self._run(node)
        self.bind([wanted])
        return np.asarray(self.known[wanted])

    def _run(self, node: Node) -> None:
        if node.results[0] in self.known:
            return
        self.bind(v for v in node.inputs() if v.node is None)
        operands = [self.known[v] if v is not None else None for v in node.operands]
        with np.errstate(all="ignore"):
            found = evaluate(node, operands, KVState([(0, SIZES[TOKENS])]))
            self.known.update(zip(node.results, found, strict=True))


def in_order(nodes: list[Node]) -> list[Node]:
    """Producers before consumers."""
    members = {id(n) for n in nodes}
    done: set[int] = set()
    order: list[Node] = []
    stack = [(n, False) for n in nodes]
    while stack:
        node, expanded = stack.pop()
        if id(node) in done:
            continue
        if expanded:
            done.add(id(node))
            order.append(node)
            continue
        stack.append((node, True))
        stack += [(v.node, False) for v in node.inputs() if v.node and id(v.node) in members]
    return order


def difference(got: Array, wanted: Array) -> float:
    """Largest deviation, relative to the largest magnitude in the same row. inf if shapes differ."""
    if got.shape != wanted.shape:
        return float("inf")
    if not wanted.size or not np.issubdtype(wanted.dtype, np.floating):
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    a, b = np.where(finite, got, 0), np.where(finite, wanted, 0)
    scale = np.abs(b).max(-1, keepdims=True) if b.ndim else np.abs(b)
    return float((np.abs(a - b) / np.maximum(scale, 1e-30)).max())


def disagreement(old: Value, new: Value, captured: Iterable[Value]) -> str | None:
    """Why ``new`` is not the same function of the captured values as ``old``; None if it seems so.

    Attention is also compared on even rows: beside a large one its softmax is 0 or 1 whatever the keys."""
    captured = list(captured)
    inner = producers([old], lambda v: v in captured)
    error = 0.0
    for even in (False, True) if any(n.op.name == "attention" for n in inner) else (False,):
        probe = Probe(even=even)
        probe.bind(captured)
        error = max(error, difference(probe.value(new), probe.value(old)))
    if error <= TOLERANCE:
        return None
    return f"differs by {error:.1e} on probe data"


def compare_graphs(
    a: Graph, b: Graph, given: Mapping[str, Array] | None = None, seed: int = 0
) -> float:
    """Largest relative difference between the outputs of two graphs of the same inputs, on drawn data.

    Weights of the same name get the same data, that in ``given`` if it is there. T is 3 and R is 2."""
    rng = np.random.default_rng(seed)
    inputs = {v.name: draw(v.type, rng, even=True) for v in a.inputs}
    shared = {**b.weights, **a.weights}
    weights = {name: draw(v.type, rng) for name, v in sorted(shared.items())} | dict(given or {})
    with np.errstate(all="ignore"):
        got, wanted = (_outputs(g, inputs, weights) for g in (b, a))
    return max((difference(x, y) for x, y in zip(got, wanted, strict=True)), default=0.0)


def _outputs(graph: Graph, inputs: dict[str, Array], weights: dict[str, Array]) -> list[Array]:
    return interpret(graph, inputs, weights, KVState([(0, SIZES[TOKENS])]))


def signature(value: Value, captured: Iterable[Value]) -> tuple[Any, ...]:
    """Equal for two expressions that do the same to captured values of the same types.

    Which layer's cache an attention uses is left out: it is empty when an expression is run."""
    number: dict[Value, Any] = {v: ("capture", i, str(v.type)) for i, v in enumerate(captured)}
    rows: list[Any] = []
    for node in in_order(producers([value], number.__contains__)):
        for v in node.inputs():
            number.setdefault(v, ("leaf", len(number), str(v.type)))
        rows.append((
            node.op.name, tuple(number[v] if v is not None else None for v in node.operands),
            tuple(item for item in node.attrs.items() if item[0] != "layer"), node.body.structure() if node.body else None,
        ))  # fmt: skip
        for r in node.results:
            number[r] = len(number)
    return (*rows, number.get(value))
