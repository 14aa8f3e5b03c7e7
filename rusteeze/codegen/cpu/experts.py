"""Products with one weight per (token, choice): the experts of a mixture.

Pairs of a token and a choice are sorted by expert, so that each expert's weights are read once for all of its
pairs. Every thread sorts for itself: the sort is short beside the products, and needs no barrier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.emit import Buffer, Emitter, Expr, i32, minimum
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.matmul import rows_per_pass
from rusteeze.codegen.cpu.micro_kernels import Activations, activations_argument, multiply
from rusteeze.codegen.cpu.schedule import Schedule, fallback
from rusteeze.codegen.cpu.tiles import TILE, TileLayout

_PAIRS_AT_ONCE = 4096  # their order is on the stack


@dataclass(frozen=True)
class ExpertShape:
    """``per_choice``: x has K elements for every (token, choice), one choice behind the other, else K per
    token. ``x_stride``: elements from token to token. ``rows_slot``: STEP_TOKENS or STEP_ROWS."""

    layout: TileLayout
    experts: int
    activation: str
    x_stride: int
    per_choice: bool
    top: int
    bias: bool
    rows_slot: int


def expert_linear(k: Emitter, isa: Isa, shape: ExpertShape, index: Access, out: Access) -> None:
    """y[t, j] = W[idx[t, j]] @ x. Arguments: x, idx, weight, [table], [bias [E, N]], y [T, top, N].

    Columns are shared among the threads."""
    layout = shape.layout
    x = activations_argument(k, shape.activation, layout.k, shape.x_stride)
    idx = Operand.argument(k, index)
    weight = k.pointer("int32")
    table = k.pointer("float32") if layout.format.family == "codebook" else None
    biases = k.pointer("float32") if shape.bias else None
    results = _Results(shape, Operand.argument(k, out), biases)
    schedule = fallback(isa, shape.activation, str(layout.format))
    first, count = k.share(i32(layout.num_tiles))
    with _pairs_by_expert(k, shape, idx) as (expert, base, order, begin, num):
        tiles = k.offset(weight, expert, layout.bytes, "int32")
        size = rows_per_pass(x, layout.k, schedule)
        with k.loop(tirx.Div(num + i32(size - 1), i32(size))) as p:
            start = k.let(begin + p * i32(size))
            here = k.let(minimum(begin + num - start, i32(size)))
            with k.loop(count) as b:
                number = k.let(first + b)
                tile = k.offset(tiles, number, layout.tile_bytes, "int32")
                for at, rows in _row_blocks(k, schedule, start, here):
                    pairs = [k.let(base + order[at + i32(i)]) for i in range(rows)]
                    numbers, starts = _rows_of_x(k, shape, x, pairs)
                    ahead = schedule.ahead(rows)
                    acc = multiply(k, x, [tile], layout, numbers, starts, ahead, table)
                    for i, pair in enumerate(pairs):
                        results.store(k, expert, pair, number, k.let(acc[i]))


@contextmanager
def _pairs_by_expert(
    k: Emitter, shape: ExpertShape, idx: Operand
) -> Iterator[tuple[Expr, Expr, Buffer, Expr, Expr]]:
    """For each expert: its number, the first pair of all that were sorted together, their order (pairs
    behind that first one), and where in the order its own begin and how many they are."""
    tokens_at_once = max(1, _PAIRS_AT_ONCE // shape.top)
    order = k.local(tokens_at_once * shape.top, "int32", lanes=1)
    ends = k.local(shape.experts, "int32", lanes=1)
    seen = k.local(1, "int32", lanes=1)
    tokens = k.step(shape.rows_slot)
    with k.loop(tirx.Div(tokens + i32(tokens_at_once - 1), i32(tokens_at_once))) as c:
        token = k.let(c * i32(tokens_at_once))
        here = k.let(minimum(tokens - token, i32(tokens_at_once)))
        with k.loop(shape.experts) as e:
            k.store(ends, e, i32(0))
        with k.loop(here) as t, k.loop(shape.top) as j:
            expert = k.let(idx.load(k, k.let(token + t), (j,)))
            k.store(ends, expert, ends[expert] + i32(1))
        k.store(seen, i32(0), i32(0))
        with k.loop(shape.experts) as e:
            count = k.let(ends[e])
            k.store(ends, e, seen[0])
            k.store(seen, i32(0), seen[0] + count)
        with k.loop(here) as t, k.loop(shape.top) as j:
            expert = k.let(idx.load(k, k.let(token + t), (j,)))
            at = k.let(ends[expert])
            k.store(order, at, t * i32(shape.top) + j)
            k.store(ends, expert, at + i32(1))
        k.store(seen, i32(0), i32(0))
        with k.loop(shape.experts) as e:
            begin = k.let(seen[0])
            end = k.let(ends[e])
            k.store(seen, i32(0), end)
            yield e, k.let(token * i32(shape.top)), order, begin, k.let(end - begin)


def _row_blocks(
    k: Emitter, schedule: Schedule, start: Expr, count: Expr
) -> Iterator[tuple[Expr, int]]:  # fmt: skip
    """Rows in blocks of the schedule's row tiles: where each begins and how many it has."""
    done, left = start, count
    for r in schedule.row_tiles:
        times = k.let(tirx.Div(left, i32(r)))
        with k.loop(times) as q:
            yield k.let(done + q * i32(r)), r
        done, left = k.let(done + times * i32(r)), k.let(left - times * i32(r))


def _rows_of_x(
    k: Emitter, shape: ExpertShape, x: Activations, pairs: list[Expr]
) -> tuple[list[Expr], list[Expr]]:
    """Which row of x belongs to each pair, and where it begins."""
    tokens = [k.let(tirx.Div(pair, i32(shape.top))) for pair in pairs]
    if not shape.per_choice:
        return tokens, [k.let(t * i32(x.stride)) for t in tokens]
    if x.kind != "f32":  # rounded rows follow each other
        return pairs, [k.let(pair * i32(x.stride)) for pair in pairs]
    choices = [k.let(tirx.Mod(pair, i32(shape.top))) for pair in pairs]
    together = zip(tokens, choices, strict=True)
    return pairs, [k.let(t * i32(x.stride) + j * i32(shape.layout.k)) for t, j in together]


@dataclass(frozen=True)
class _Results:
    """Where products go."""

    shape: ExpertShape
    target: Operand
    biases: Buffer | None

    def store(self, k: Emitter, expert: Expr, pair: Expr, tile: Expr, product: Expr) -> None:
        """16 columns of a pair's result."""
        n = self.shape.layout.n
        token = k.let(tirx.Div(pair, i32(self.shape.top)))
        choice = k.let(tirx.Mod(pair, i32(self.shape.top)))
        column = k.let(tile * i32(TILE))
        if n % TILE == 0:
            if self.biases is not None:
                product = product + self.biases.load(k.let(expert * i32(n) + column), TILE)
            self.target.store(k, token, (choice, column), product)
            return
        parked = k.local(TILE, lanes=1)
        k.store(parked, i32(0), product)
        # lane by lane: rows of [top, N] follow each other, a whole vector could cross into the next
        with k.loop(minimum(i32(n) - column, i32(TILE))) as lane:
            value = parked[lane]
            if self.biases is not None:
                value = value + self.biases[expert * i32(n) + column + lane]
            self.target.store(k, token, (choice, column + lane), value)
