"""Fused regions: an anchor (matmul, norm, pointwise) around expressions from the IR.

A region's results are rows of float32 or int32, or rounded rows where the body ends in ``quantize``.
Kernel arguments, in this order: what the anchor reads, the other operands in body order, the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.activations import GROUP, RoundedRows
from rusteeze.codegen.cpu.bodies import Env, evaluate
from rusteeze.codegen.cpu.emit import LANES, Emitter, Expr, i32
from rusteeze.ir import Graph, Node, Value

Compute = Callable[[Expr, int], Env]
"""(first column, lanes) → values of the body there"""


@dataclass(frozen=True)
class Result:
    """Where one output of a region goes: an access, or rounded rows of a kind and width."""

    access: Access | None
    kind: str = ""
    columns: int = 0

    def key(self) -> str:
        return self.access.key() if self.access else f"{self.kind}:{self.columns}"


@dataclass(frozen=True)
class Region:
    """A body and how its operands and results are addressed. ``rows_slot``: STEP_TOKENS or STEP_ROWS."""

    body: Graph
    operands: tuple[Access | None, ...]  # one per body input; None for what the anchor reads itself
    results: tuple[Result, ...]
    rows_slot: int

    def rounded(self, output: int) -> bool:
        """Whether an output ends in ``quantize``."""
        return self.results[output].access is None

    def computed(self, output: int) -> Value:
        """The value of an output before it is rounded."""
        value = self.body.outputs[output]
        if not self.rounded(output):
            return value
        assert value.node is not None
        (source,) = value.node.inputs()
        return source

    def pointwise(self, skip: Sequence[Node] = ()) -> list[Node]:
        """The nodes that are evaluated element by element."""
        return [n for n in self.body.nodes if n.op.name != "quantize" and n not in skip]


class BoundRegion:
    """A region whose operands and results are arguments of a kernel. ``shape``: inner axes of its
    results."""

    def __init__(self, k: Emitter, region: Region, shape: tuple[int, ...]) -> None:
        self.k, self.region, self.shape = k, region, shape
        self.operands: dict[Value, Operand] = {}
        for v, access in zip(region.body.inputs, region.operands, strict=True):
            if access is not None:
                self.operands[v] = Operand.argument(k, access.aligned_to(shape))
        self.targets: list[Operand | RoundedRows] = []
        for r in region.results:
            if r.access is None:
                self.targets.append(RoundedRows.argument(k, r.kind, r.columns))
            else:
                self.targets.append(Operand.argument(k, r.access.aligned_to(shape)))

    def store(self, output: int, row: Expr, position: Sequence[Expr], env: Env) -> None:
        """Write one or 16 elements of an output that is not rounded."""
        target = self.targets[output]
        assert isinstance(target, Operand)
        target.store(self.k, row, position, env[self.region.computed(output)])

    def store_group(self, output: int, row: Expr, group: Expr, pair: Sequence[Expr]) -> None:
        """Round and write a group of 32 elements, given as two vectors."""
        target = self.targets[output]
        assert isinstance(target, RoundedRows)
        target.store_group(self.k, pair[0], pair[1], row, group)

    def row(self, row: Expr, outer: Sequence[Expr] = ()) -> RegionRow:
        return RegionRow(self, row, tuple(outer))

    def each_row(self, body: Callable[[RegionRow], None]) -> None:
        """``body`` for this thread's share of the rows and every position of the outer axes."""
        k = self.k
        first, count = k.share(k.step(self.region.rows_slot))
        with k.loop(count) as n:
            self._outer_loops(k.let(first + n), self.shape[:-1], [], body)

    def _outer_loops(
        self, row: Expr, axes: tuple[int, ...], done: list[Expr], body: Callable[[RegionRow], None]
    ) -> None:
        if not axes:
            body(self.row(row, done))
            return
        with self.k.loop(axes[0]) as i:
            self._outer_loops(row, axes[1:], [*done, i], body)


@dataclass(frozen=True)
class RegionRow:
    """One row of a region's results (at one position of the outer axes): vectors along the last axis."""

    bound: BoundRegion
    row: Expr
    outer: tuple[Expr, ...]

    def load(self, value: Value, column: Expr, lanes: int) -> Expr:
        """Elements of an operand."""
        return self.bound.operands[value].load(self.bound.k, self.row, (*self.outer, column), lanes)

    def evaluate(self, nodes: Sequence[Node], env: Env, column: Expr, lanes: int) -> None:
        """Compute body nodes at a place into env."""
        evaluate(self.bound.k, nodes, env, lanes, lambda v: self.load(v, column, lanes))

    def store(self, outputs: Sequence[int], column: Expr, env: Env) -> None:
        for o in outputs:
            self.bound.store(o, self.row, (*self.outer, column), env)

    def rounded_row(self) -> Expr:
        """The row's number among rounded rows, which follow each other over all outer axes."""
        number = self.row
        for extent, position in zip(self.bound.shape, self.outer, strict=False):
            number = number * i32(extent) + position
        return number

    def write(self, compute: Compute, outputs: Sequence[int]) -> None:
        """Compute the row and write its outputs, a vector (or an element) at a time."""
        k, region, width = self.bound.k, self.bound.region, self.bound.shape[-1]
        rounded = [o for o in outputs if region.rounded(o)]
        plain = [o for o in outputs if o not in rounded]

        def step(column: Expr, lanes: int) -> Env:
            env = compute(column, lanes)
            self.store(plain, column, env)
            return env

        if not rounded:
            columns(k, width, step)
            return
        with k.loop(width // GROUP) as g:
            starts = range(0, GROUP, LANES)
            envs = [step(k.let(g * i32(GROUP) + i32(start)), LANES) for start in starts]
            for o in rounded:
                self.bound.store_group(o, self.rounded_row(), g, [env[region.computed(o)] for env in envs])


def columns(k: Emitter, width: int, body: Callable[[Expr, int], object]) -> None:
    """body(first column, lanes) over a row: whole vectors, then single elements."""
    whole = width // LANES
    if whole:
        with k.loop(whole) as i:
            body(k.let(i * i32(LANES)), LANES)
    left = width - whole * LANES
    if left:
        with k.loop(left) as j:
            body(k.let(j + i32(whole * LANES)), 1)
