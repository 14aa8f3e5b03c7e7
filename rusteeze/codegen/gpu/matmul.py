"""Products y[m, n] = sum over k of w[n, k] x[m, k], with what is pointwise in the result.

The weight is the left operand: its rows fill the 64-row side of Hopper's tensor instructions however few
tokens there are. Sums over K are made in ``splits`` runs, added up in order: either each run by a program
of its own, the last of which to arrive adds up what all left in the workspace, or all by one program.
Quantised weights are multiplied as whole numbers, or as the numbers of float8, exact in bf16; each group's sum is
scaled in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rusteeze.codegen.gpu.lowering import NormedRows
from rusteeze.codegen.gpu.norm_inputs import normed, row_scales
from rusteeze.codegen.gpu.pairwise import pairwise
from rusteeze.codegen.gpu.schedule import Tile
from rusteeze.codegen.gpu.source import Source, row_index
from rusteeze.codegen.gpu.weights import TILE_ROWS, QuantShape

Epilogue = Callable[[list[str]], None]
"""Gets the names of the sums [weight rows, rows], one for each half."""


@dataclass(frozen=True)
class Product:
    """A matmul as its kernel sees it: N rows of the weight (of each half, when there are two), K columns,
    elements from row to row of x, dtype of x, in how many runs the sums are cut."""

    n: int
    k: int
    x_stride: int
    x_dtype: str
    halves: int
    splits: int
    weight_dtype: str = ""
    quant: QuantShape | None = None
    rows: NormedRows | None = None
    """Of what x is the norm; x is the norm's input then."""

    @property
    def exact(self) -> bool:
        return self.x_dtype != "bf16"

    @property
    def crowded(self) -> bool:
        return self.halves > 1 or self.quant is not None


def matmul(k: Source, p: Product, tile: Tile, count: str, split_programs: bool, epilogue: Epilogue) -> None:
    """The kernel's body. Parameters x, w [scales, minimums, table], and workspace when ``split_programs``
    and there is more than one split, are there. ``count``: number of rows."""
    k.constants(N=p.n, K=p.k, BN=tile.weight_rows, BM=tile.rows)
    separate = split_programs and p.splits > 1
    k.line("tile_n = tl.program_id(0)")
    k.line("tile_m = tl.program_id(1)")
    with k.block(f"if tile_m * BM >= {count}:"):
        k.line("return")
    k.line("n = tile_n * BN + tl.arange(0, BN)")
    k.line("m = tile_m * BM + tl.arange(0, BM)")
    k.line(f"live = m < {count}")
    if p.n % tile.weight_rows:
        k.line("wn = tl.minimum(n, N - 1)  # rows beyond the last are not stored")
    else:
        k.line("wn = n")
    if copies_tiles(p, tile):
        describe_tiles(k, p, tile, count)
    if p.rows is not None:
        k.line(f"scale = {row_scales(k, p.rows, 'sums', 'm', 'BM', 'live')}")
    names = sums_over_k(k, p, tile, "tl.program_id(2)" if separate else "")
    if separate:
        _gather_splits(k, p, names)
    epilogue(names)


def at_matrix(k: Source, p: Product, index: str) -> None:
    """Move the weight's parameters to one matrix of a stack."""
    k.line(f"w = w + {index}.to(tl.int64) * {p.quant.code_bytes if p.quant else p.n * p.k}")
    if p.quant is not None:
        size = p.quant.groups * p.quant.padded_n
        k.line(f"scales = scales + {index}.to(tl.int64) * {size}")
        if p.quant.format.family == "affine" and not p.quant.format.symmetric:
            k.line(f"minimums = minimums + {index}.to(tl.int64) * {size}")


def sums_over_k(k: Source, p: Product, tile: Tile, split: str = "") -> list[str]:
    """Names of the sums [BN, BM], one for each half: of one ``split`` of the runs over K, or of all."""
    depth = p.quant.block if p.quant else tile.depth
    run = p.k // p.splits if p.splits > 1 else -(-p.k // depth) * depth
    names = [f"acc{h}" for h in range(p.halves)]
    if split or p.splits == 1:
        _run(k, p, tile, names, f"{split} * {run}" if split else "0", run, depth)
    else:
        for name in names:
            k.line(f"{name}_all = tl.zeros((BN, BM), tl.float32)")
        with k.block(f"for split in range(0, {p.splits}):"):
            _run(k, p, tile, names, f"split * {run}", run, depth)
            for name in names:
                k.line(f"{name}_all += {name}")
        names = [f"{name}_all" for name in names]
    return names


def _run(k: Source, p: Product, tile: Tile, names: list[str], start: str, run: int, depth: int) -> None:
    """Sums over K from ``start`` on."""
    for name in names:
        k.line(f"{name} = tl.zeros((BN, BM), tl.float32)")
    k.line(f"start = {start}")
    with k.block(f"for k0 in range(start, start + {run}, {depth}):"):
        if p.quant is not None:
            _quantised_step(k, p, p.quant, names)
        else:
            _dense_step(k, p, tile, names)


def copies_tiles(p: Product, tile: Tile) -> bool:
    """Whether hardware that copies tiles copies those of this product: large ones of plain bf16, whose rows begin at
    multiples of 16 bytes."""
    plain = p.quant is None and p.rows is None and p.x_dtype == p.weight_dtype == "bf16"
    return plain and not tile.up_to and p.k % 8 == p.x_stride % 8 == 0


def describe_tiles(k: Source, p: Product, tile: Tile, count: str) -> None:
    """How tiles of weights and of rows are copied; what lies beyond the last row or column is 0."""
    k.copies_tiles = True
    with k.block("if TMA:"):
        sizes = f"[{p.halves * p.n}, K], strides=[K, 1], block_shape=[BN, {tile.depth}]"
        k.line(f"weights = tl.make_tensor_descriptor(w, shape={sizes})")
        sizes = f"[{count}, K], strides=[{p.x_stride}, 1], block_shape=[BM, {tile.depth}]"
        k.line(f"rows = tl.make_tensor_descriptor(x, shape={sizes})")


def _dense_step(k: Source, p: Product, tile: Tile, names: list[str]) -> None:
    ragged = p.k % tile.depth != 0
    k.line(f"kk = k0 + tl.arange(0, {tile.depth})")
    _either(k, "b", "rows.load([tile_m * BM, k0]).T", _activations(k, p, "kk", ragged))
    for half, name in enumerate(names):
        rows = row_index(f"(wn + {half * p.n})" if half else "wn", p.halves * p.n * p.k)
        masked = ", mask=(kk < K)[None, :], other=0" if ragged else ""
        copied = f"weights.load([tile_n * BN + {half * p.n}, k0])"
        _either(k, "a", copied, f"tl.load(w + {rows}[:, None] * K + kk[None, :]{masked})")
        a = "a" if p.weight_dtype == p.x_dtype else "a.to(tl.float32)"
        k.line(f"{name} = {dot(a, 'b', name, p.exact)}")


def _either(k: Source, name: str, copied: str, loaded: str) -> None:
    """A tile, copied by the hardware where the kernel has that variant."""
    if not k.copies_tiles:
        k.line(f"{name} = {loaded}")
        return
    with k.block("if TMA:"):
        k.line(f"{name} = {copied}")
    with k.block("else:"):
        k.line(f"{name} = {loaded}")


def dot(a: str, b: str, acc: str, exact: bool) -> str:
    precision = ', input_precision="ieee"' if exact else ""
    return f"tl.dot({a}, {b}, {acc}{precision})"


def _activations(k: Source, p: Product, columns: str, ragged: bool) -> str:
    """x [columns, rows]"""
    mask = f"live[None, :] & ({columns} < K)[:, None]" if ragged else "live[None, :]"
    x = f"tl.load(x + m[None, :] * {p.x_stride} + {columns}[:, None], mask={mask}, other=0)"
    if p.rows is None:
        return x
    gain = ""
    if p.rows.weight is not None:
        masked = f", mask={columns} < K, other=0" if ragged else ""
        gain = k.let(f"tl.load(gains + {columns}{masked})") + "[:, None]"
    value = k.let(normed(p.rows, k.let(x), "scale[None, :]", gain))
    return value if p.exact else f"{value}.to(tl.bfloat16)"


def _quantised_step(k: Source, p: Product, q: QuantShape, names: list[str]) -> None:
    """One block of codes: a product per ``q.step`` columns, scaled by its group."""
    ragged = p.k % q.block != 0
    parts = q.block // q.step
    k.line(f"j = tl.arange(0, {q.step})")
    for part in range(parts):
        k.line(f"b{part} = {_activations(k, p, f'(k0 + {part * q.step} + j)', ragged)}")
        if q.format.family == "affine" and not q.format.symmetric:
            wide = k.let(f"tl.reshape(b{part}.to(tl.float32), (1, {q.step}, BM))")
            k.line(f"sum{part} = tl.reshape({pairwise(k, wide, (1, q.step, 'BM'))}, (BM,))")
    for half, name in enumerate(names):
        row = f"wn + {half * p.n}" if half else "wn"
        k.line(f"r = {row_index(row, p.halves * p.n * p.k)}")
        k.line(
            f"at = ((r // {TILE_ROWS}) * {q.blocks} + k0 // {q.block}) * {TILE_ROWS * q.block_bytes}"
            f" + (r % {TILE_ROWS}) * {q.block_bytes}"
        )
        k.line("codes = tl.load(w + at[:, None] + j[None, :])")
        for part in range(parts):
            _quantised_product(k, p, q, name, part, parts)


def _quantised_product(k: Source, p: Product, q: QuantShape, name: str, part: int, parts: int) -> None:
    code = "codes" if parts == 1 else ("(codes & 15)" if part == 0 else "(codes >> 4)")
    number = "tl.float32" if p.exact else "tl.bfloat16"
    if q.format.family == "codebook":
        k.line(f"a = tl.load(table + {code}.to(tl.int32)).to({number})")
    elif q.format.family == "float8":
        k.line(f"a = fn.e4m3({code}.to(tl.int32)).to({number})")
    else:
        zero = f" - {float(q.format.zero)}" if q.format.symmetric and q.format.zero else ""
        k.line(f"a = ({code}.to(tl.float32){zero}).to({number})")
    fresh = "tl.zeros((BN, BM), tl.float32)"
    k.line(f"part = {dot('a', f'b{part}', fresh, p.exact)}")
    k.line(f"group = (k0 + {part * q.step}) // {q.format.group} * {q.padded_n} + r")
    k.line(f"{name} += part * tl.load(scales + group)[:, None]")
    if q.format.family == "affine" and not q.format.symmetric:
        k.line(f"{name} += tl.load(minimums + group)[:, None] * sum{part}[None, :]")


def _gather_splits(k: Source, p: Product, names: list[str]) -> None:
    """Leave the run's sums in the workspace; the last program of a tile to come adds all up in order, the
    others are done. Counters are 0 before and after."""
    k.line(f"tile = tile_m * {'tl.num_programs(0)'} + tile_n")
    k.line("inside = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]")
    k.line(f"base = workspace + tile * {p.splits * p.halves} * BN * BM")
    for h, name in enumerate(names):
        k.line(f"tl.store(base + (tl.program_id(2) * {p.halves} + {h}) * BN * BM + inside, {name})")
    k.line("tl.debug_barrier()  # all of the program's stores come before its arrival")
    k.line('arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")')
    with k.block(f"if arrived != {p.splits - 1}:"):
        k.line("return")
    k.line("tl.store(counters + tile, 0)")
    for h, name in enumerate(names):
        k.line(f'{name} = tl.load(base + {h} * BN * BM + inside, cache_modifier=".cg")')
        for split in range(1, p.splits):
            at = f"{split * p.halves + h} * BN * BM"
            k.line(f'{name} += tl.load(base + {at} + inside, cache_modifier=".cg")')
