"""RMS and layer normalisation of rows, with pointwise work before and after in the same pass.

Sums run over up to 4 accumulators of 16 lanes, in an order that depends on the width alone.
"""

from __future__ import annotations

from collections.abc import Callable

from rusteeze.codegen.cpu.bodies import Env
from rusteeze.codegen.cpu.emit import (
    LANES,
    Buffer,
    Emitter,
    Expr,
    f32,
    fma,
    i32,
    intrinsic,
    reduce_add,
    splat,
)
from rusteeze.codegen.cpu.region import BoundRegion, Region, RegionRow, columns
from rusteeze.ir import Node, Value

Load = Callable[[Expr, int], Expr]
"""(first column, lanes) → elements of a row"""


def norm_region(k: Emitter, region: Region, norm: Node, shape: tuple[int, ...]) -> None:
    """``shape``: inner axes; the last one is normalised, positions of the others are rows of their own.
    Rows (tokens) are shared among the threads."""
    bound = BoundRegion(k, region, shape)
    before, after = _around(region, norm)
    # a row that has to be computed first is kept on the stack: it is read three times
    stash = k.local(shape[-1], lanes=1) if before else None
    bound.each_row(lambda here: _norm_row(here, norm, before, after, stash))


def _around(region: Region, norm: Node) -> tuple[list[Node], list[Node]]:
    """The pointwise nodes that the norm needs, and the others."""
    needed: set[Value] = {v for v in norm.operands[:1] if v is not None}
    before: list[Node] = []
    nodes = region.pointwise([norm])
    for node in reversed(nodes):
        if any(r in needed for r in node.results):
            before.insert(0, node)
            needed.update(node.inputs())
    return [n for n in before if n.op.name != "const"], [n for n in nodes if n not in before]


def _norm_row(
    here: RegionRow, norm: Node, before: list[Node], after: list[Node], stash: Buffer | None
) -> None:
    k, region = here.bound.k, here.bound.region
    source = norm.operands[0]
    assert source is not None
    width = here.bound.shape[-1]
    early = [o for o, v in enumerate(region.body.outputs) if v.node in before]

    def given(column: Expr, lanes: int) -> Expr:
        if stash is None:
            return here.load(source, column, lanes)
        return k.let(stash.load(column, lanes))

    def prologue(column: Expr, lanes: int) -> None:
        env: Env = {}
        here.evaluate(before, env, column, lanes)
        assert stash is not None
        k.store(stash, column, env[source])
        here.store(early, column, env)

    if stash is not None:
        columns(k, width, prologue)
    centred = norm.op.name == "layer_norm"
    eps = float(norm.attrs["eps"])  # type: ignore[arg-type]
    mean, factor = mean_and_factor(k, given, width, eps, centred)

    def result(column: Expr, lanes: int) -> Env:
        x = given(column, lanes)
        env: Env = {norm.result: _normalised(here, norm, x, mean, factor, column, lanes)}
        if stash is not None:
            env[source] = x
        here.evaluate(after, env, column, lanes)
        return env

    here.write(result, [o for o in range(len(region.results)) if o not in early])


def _normalised(
    here: RegionRow, norm: Node, x: Expr, mean: Expr | None, factor: Expr, column: Expr, lanes: int
) -> Expr:
    """(x - mean) * factor * (weight + offset) + bias"""
    k = here.bound.k
    weight, bias = norm.operands[1], (norm.operands[2] if len(norm.operands) > 2 else None)
    if mean is not None:
        x = x - splat(mean, lanes)
    y = k.let(x * splat(factor, lanes))
    if weight is not None:
        w = here.load(weight, column, lanes)
        offset = float(norm.attrs.get("offset", 0.0))  # type: ignore[arg-type]
        y = y * (w + splat(offset, lanes) if offset else w)
    return k.let(y if bias is None else y + here.load(bias, column, lanes))


def mean_and_factor(
    k: Emitter, load: Load, width: int, eps: float, centred: bool
) -> tuple[Expr | None, Expr]:
    """(mean or None, 1 / sqrt(mean of squares + eps)) of a row."""
    mean = k.let(row_sum(k, width, load) * f32(1 / width)) if centred else None

    def square(column: Expr, lanes: int) -> Expr:
        x = load(column, lanes)
        if mean is not None:
            x = k.let(x - splat(mean, lanes))
        return x * x

    squares = row_sum(k, width, square)
    return mean, k.let(f32(1) / intrinsic("sqrt", fma(squares, f32(1 / width), f32(eps))))


def row_sum(k: Emitter, width: int, term: Load) -> Expr:
    """Sum of term(column) over a row."""
    whole = width // LANES
    total = _vector_sum(k, whole, term) if whole else f32(0)
    if width % LANES == 0:
        return total
    tail = k.local(1, lanes=1)
    k.store(tail, 0, total)
    with k.loop(width % LANES) as j:
        k.store(tail, 0, tail[0] + term(k.let(j + i32(whole * LANES)), 1))
    return k.let(tail[0])


def _vector_sum(k: Emitter, whole: int, term: Load) -> Expr:
    accumulators = min(4, whole)
    acc = k.local(accumulators)
    for u in range(accumulators):
        k.store(acc, u, splat(0.0, LANES))
    with k.loop(whole // accumulators) as i:
        for u in range(accumulators):
            column = k.let((i * i32(accumulators) + i32(u)) * i32(LANES))
            k.store(acc, u, acc[u] + term(column, LANES))
    for u in range(whole % accumulators):
        column = i32((whole // accumulators * accumulators + u) * LANES)
        k.store(acc, u, acc[u] + term(column, LANES))
    vector = acc[0]
    for u in range(1, accumulators):
        vector = vector + acc[u]
    return k.let(reduce_add(k.let(vector)))
