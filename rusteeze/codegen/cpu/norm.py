"""RMS and layer normalisation of rows, with pointwise work before and after in the same pass.

Arguments: the row(s) to normalise and what the expressions around need; the sums run over 4
accumulators of 16 lanes in an order that depends on the width alone.
"""

from __future__ import annotations

from collections.abc import Callable

from rusteeze.codegen.cpu.emit import (
    LANES,
    Emitter,
    Expr,
    f32,
    fma,
    i32,
    intrinsic,
    reduce_add,
    splat,
)

Load = Callable[[Expr, int], Expr]
"""(first column, lanes) → values of the row"""


def row_sum(k: Emitter, width: int, term: Callable[[Expr, int], Expr]) -> Expr:
    """Sum over a row of term(column, lanes)."""
    whole = width // LANES
    accumulators = min(4, max(1, whole))
    total = f32(0)
    if whole:
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
        total = reduce_add(k.let(vector))
    if width % LANES == 0:
        return total
    tail = k.local(1, lanes=1)
    k.store(tail, 0, total)
    with k.loop(width % LANES) as j:
        k.store(tail, 0, tail[0] + term(k.let(j + i32(whole * LANES)), 1))
    return k.let(tail[0])


def mean_and_factor(
    k: Emitter, load: Load, width: int, eps: float, centred: bool
) -> tuple[Expr | None, Expr]:
    """(mean or None, 1 / sqrt(mean of squares + eps)) of a row."""
    mean = None
    if centred:
        mean = k.let(row_sum(k, width, load) * f32(1 / width))

    def square(column: Expr, lanes: int) -> Expr:
        x = load(column, lanes)
        if mean is not None:
            x = k.let(x - splat(mean, lanes))
        return x * x

    squares = row_sum(k, width, square)
    return mean, k.let(f32(1) / intrinsic("sqrt", fma(squares, f32(1 / width), f32(eps))))


def normalised(
    k: Emitter, x: Expr, mean: Expr | None, factor: Expr, lanes: int, weight: Expr | None,
    bias: Expr | None, offset: float,
) -> Expr:  # fmt: skip
    """(x - mean) * factor * (weight + offset) + bias"""
    if mean is not None:
        x = x - splat(mean, lanes)
    y = k.let(x * splat(factor, lanes))
    if weight is not None:
        y = y * (weight + splat(offset, lanes) if offset else weight)
    return k.let(y if bias is None else y + bias)


def columns(k: Emitter, width: int, body: Callable[[Expr, int], None]) -> None:
    """body(first column, lanes) over a row: whole vectors, then single elements."""
    whole = width // LANES
    if whole:
        with k.loop(whole) as i:
            body(k.let(i * i32(LANES)), LANES)
    if width % LANES:
        with k.loop(width % LANES) as j:
            body(k.let(j + i32(whole * LANES)), 1)
