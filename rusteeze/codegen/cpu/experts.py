"""Products with one weight per (token, choice): the experts of a mixture."""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.access import Operand
from rusteeze.codegen.cpu.emit import Emitter, i32, minimum
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.micro_kernels import activations_argument, multiply
from rusteeze.codegen.cpu.schedule import fallback
from rusteeze.codegen.cpu.tiles import TILE, TileLayout


@dataclass(frozen=True)
class ExpertShape:
    """``per_choice``: x has K elements for every (token, choice), one choice behind the other, else K per
    token. ``x_stride``: elements from token to token. ``rows_slot``: STEP_TOKENS or STEP_ROWS."""

    layout: TileLayout
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
    target = Operand.argument(k, out)
    ahead = fallback(isa, shape.activation).ahead(1)
    first, count = k.share(i32(layout.num_tiles))
    with k.loop(k.step(shape.rows_slot)) as t, k.loop(shape.top) as j:
        expert = k.let(idx.load(k, t, (j,)))
        base = k.offset(weight, expert, layout.bytes, "int32")
        x_at = t * i32(x.stride)
        x_at = k.let(x_at + j * i32(layout.k) if shape.per_choice else x_at)
        with k.loop(count) as b:
            number = k.let(first + b)
            tile = k.offset(base, number, layout.tile_bytes, "int32")
            acc = multiply(k, x, [tile], layout, t, [x_at], ahead, table)
            parked = k.local(TILE, lanes=1)
            k.store(parked, i32(0), k.let(acc[0]))
            column = k.let(number * i32(TILE))
            # lane by lane: rows of [k, N] follow each other, a whole vector could cross into the next
            with k.loop(minimum(i32(layout.n) - column, i32(TILE))) as lane:
                value = parked[lane]
                if biases is not None:
                    value = value + biases[expert * i32(layout.n) + column + lane]
                target.store(k, t, (j, column + lane), value)
