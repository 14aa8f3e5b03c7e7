"""The largest logit of each row, found by all threads behind the last product.

A row is cut into PARTS; each part gives its largest value and where it is, the runtime takes the largest of
these. Of equal values the first counts, and the first NaN counts as larger than any number, as in numpy's
argmax.
"""

from __future__ import annotations

import math

from tvm import tirx

from rusteeze.artifact.contract import BEST_PARTS as PARTS
from rusteeze.codegen.cpu.access import Access
from rusteeze.codegen.cpu.emit import (
    LANES,
    STEP_ROWS,
    Buffer,
    Emitter,
    Expr,
    bits_as,
    f32,
    i32,
    lanes_of,
    maximum,
    minimum,
    ramp,
    select,
    splat,
)
from rusteeze.codegen.cpu.lowering import Lowering, at
from rusteeze.ir.graph import make_node


def lower_best_tokens(ctx: Lowering) -> None:
    """The last call of a plan: reads the logits and fills ``ctx.best``."""
    (logits,) = ctx.graph.outputs
    view = ctx.view(logits)
    node = make_node("topk", [logits], {"k": 1})
    results = [ctx.scratch("R", value, (PARTS,)) for value in node.results]
    ctx.best = [r.storage for r in results]
    access, width = view.access, int(logits.type.shape[1])
    strides = [r.access.row for r in results]
    ctx.call(
        f"best_tokens_{width}", f"{access.key()}|{strides}",
        lambda k, _isa: best_tokens(k, access, width, strides), [at(view)], [at(r) for r in results], node,
    )  # fmt: skip


def best_tokens(k: Emitter, logits: Access, width: int, strides: list[int]) -> None:
    """Arguments: logits [R, width], largest values [R, PARTS], their places [R, PARTS].

    Threads take parts of all rows, not rows: about what they wrote themselves, as products share columns."""
    x, values, places = k.pointer("float32"), k.pointer("float32"), k.pointer("int32")
    size = -(-width // (PARTS * LANES)) * LANES
    rows = k.step(STEP_ROWS)
    first, count = k.share(rows * i32(PARTS))
    with k.loop(count) as n:
        item = k.let(first + n)
        row, part = k.let(tirx.Mod(item, rows)), k.let(tirx.Div(item, rows))
        start = k.let(part * i32(size))
        length = k.let(maximum(minimum(i32(width) - start, i32(size)), i32(0)))
        best, place = k.local(LANES, lanes=1), k.local(LANES, "int32", lanes=1)
        base = k.let(row * i32(logits.row))
        _largest_of_lanes(k, x, base, start, length, best, place)
        with k.loop(tirx.Mod(length, i32(LANES))) as rest:
            i = k.let(start + tirx.Div(length, i32(LANES)) * i32(LANES) + rest)
            _take(k, best, place, k.let(x[base + i]), i)
        with k.loop(LANES - 1) as lane:
            _take(k, best, place, k.let(best[lane + i32(1)]), k.let(place[lane + i32(1)]))
        k.store(values, row * i32(strides[0]) + part, best[0])
        k.store(places, row * i32(strides[1]) + part, place[0])


def _largest_of_lanes(
    k: Emitter, x: Buffer, base: Expr, start: Expr, length: Expr, best: Buffer, place: Buffer
) -> None:
    """The first largest element of each lane of the part's whole vectors."""
    top, index = k.local(1), k.local(1, "int32")
    k.store(top, 0, splat(f32(-math.inf), LANES))
    k.store(index, 0, ramp(start, LANES))
    with k.loop(tirx.Div(length, i32(LANES))) as c:
        at = k.let(start + c * i32(LANES))
        value, old = k.let(x.load(base + at, LANES)), k.let(top[0])
        better = tirx.Or(value > old, tirx.And(_is_nan(value), tirx.Not(_is_nan(old))))
        k.store(index, 0, select(better, ramp(at, LANES), index[0]))
        k.store(top, 0, select(better, value, old))
    k.store(best, i32(0), top[0])
    k.store(place, i32(0), index[0])


def _is_nan(x: Expr) -> Expr:
    """By its bits: TIR takes x == x for true."""
    lanes = lanes_of(x)
    magnitude = tirx.bitwise_and(bits_as(x, "int32"), splat(i32(0x7FFFFFFF), lanes))
    return magnitude > splat(i32(0x7F800000), lanes)


def _take(k: Emitter, best: Buffer, place: Buffer, value: Expr, at: Expr) -> None:
    """Element 0 becomes (value, at) if that is larger, or as large and earlier."""
    old, before = k.let(best[0]), k.let(place[0])
    nan, was_nan = _is_nan(value), _is_nan(old)
    same = tirx.any(tirx.EQ(value, old), tirx.all(nan, was_nan))
    larger = tirx.any(value > old, tirx.all(nan, tirx.Not(was_nan)))
    better = k.let(tirx.any(larger, tirx.all(same, at < before)))
    k.store(best, i32(0), select(better, value, old))
    k.store(place, i32(0), select(better, at, before))
