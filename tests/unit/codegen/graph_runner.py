"""Compiles small graphs and runs them beside the interpreter.

A graph may have any number of outputs of any static inner shape: they are joined into the one matrix
that a plan returns, and taken apart again. Example::

    runner = GraphRunner(parse(TEXT), {"w": weight}, isa, folder)
    for found, wanted in runner.pairs(steps(5)): ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.cpu.build import build_library
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.lower import Lowered, LoweringOptions, lower
from rusteeze.codegen.cpu.schedule import Table
from rusteeze.ir import Graph, KVState, interpret, verify
from rusteeze.ir.types import ROWS, TOKENS, DType, TensorType
from rusteeze.passes.round_cache import RoundCache
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.weights import Dense, Weight

Array = np.ndarray
NAN_BYTE = 0xFF
NUM_BLOCKS = 64
MAX_MODEL_LEN = 512


def dense(values: Array, dtype: str = "f32") -> Dense:
    """A plain weight of float or integer values."""
    if values.dtype.kind in "iu":
        return Dense(values.astype(np.int32), "i32")
    return Dense(values.astype(np.float32), "f32").converted(dtype)


def as_interpreted(weight: Weight) -> Array:
    integers = isinstance(weight, Dense) and weight.dtype == "i32"
    return weight.values if integers else weight.to_f32()  # type: ignore[union-attr]


def with_one_output(graph: Graph) -> Graph:
    """A copy whose only output is f32[R, n]: all outputs flattened, as float32, side by side."""
    out = graph.copy()
    rows = next((v for v in out.inputs if v.name == "rows"), None)
    if rows is None:
        rows = out.input("rows", TensorType(DType.i32, (ROWS,)))
    parts = []
    for v in out.outputs:
        if v.type.dtype is not DType.f32:
            v = out.add("cast", v, dtype="f32")
        v = out.add("reshape", v, shape=(v.type.shape[0], _width(v.type)))
        parts.append(out.add("gather_rows", v, rows) if v.type.shape[0] == TOKENS else v)
    out.outputs = [parts[0] if len(parts) == 1 else out.add("concat", *parts, axis=1)]
    verify(out)
    return out


def _width(t: TensorType) -> int:
    return math.prod(int(d) for d in t.shape[1:])


@dataclass(frozen=True)
class Tokens:
    """One step: ``chunks`` lists (sequence, number of its tokens) in row order; ``ids`` one per token.

    ``rows``: the tokens whose results are wanted, by default all."""

    ids: Array
    chunks: tuple[tuple[int, int], ...]
    rows: Array


def tokens(ids: Sequence[int] | Array | range, rows: Sequence[int] | None = None) -> Tokens:
    """A step of one new sequence."""
    array = np.asarray(ids, np.int32)
    wanted = np.arange(len(array)) if rows is None else rows
    return Tokens(array, ((0, len(array)),), np.asarray(wanted, np.int32))


@dataclass
class Sequences:
    """How far each sequence has come, and which cache blocks it owns, in random order."""

    free: list[int] = field(
        default_factory=lambda: np.random.default_rng(7).permutation(NUM_BLOCKS).tolist()
    )
    lengths: dict[int, int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)

    def batch(self, step: Tokens) -> Batch:
        """The step as the executor wants it; its tokens count as processed from now on."""
        positions, slots, ends, order = [], [], [], []
        for sequence, n in step.chunks:
            start = self.lengths.get(sequence, 0)
            self.lengths[sequence] = start + n
            table = self.tables.setdefault(sequence, [])
            while len(table) * BLOCK_SIZE < start + n:
                table.append(self.free.pop())
            positions += range(start, start + n)
            slots += [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(start, start + n)]
            ends.append(start + n)
            order.append(table)
        width = max(map(len, order))
        starts = np.cumsum([0] + [n for _, n in step.chunks])
        tables = [t + [0] * (width - len(t)) for t in order]
        arrays = (step.ids, positions, slots, step.rows, starts, ends, tables)
        return Batch(*(np.array(a, np.int32) for a in arrays))


class GraphRunner:
    """One graph, compiled for one instruction set. ``run`` and ``interpret`` give its outputs by step.

    The compiled side keeps its caches (initially all NaN) and the interpreter its state, so the same
    steps must go to both in the same order; ``restart`` forgets all sequences."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Weight], isa: Isa, folder: Path, *,
        cache: str = "f32", threads: int = 1, max_tokens: int = 64, tables: tuple[Table, ...] = (),
    ) -> None:  # fmt: skip
        self.graph, self.weights, self.max_tokens = graph, weights, max_tokens
        self.arrays = {name: as_interpreted(w) for name, w in weights.items()}
        RoundCache(cache).run(graph)
        joined = with_one_output(graph)
        self.lowered: Lowered = lower(joined, LoweringOptions(MAX_MODEL_LEN, tables=tables))
        self.data = {
            name: aligned(self.lowered.statics.data(name, weights.__getitem__))
            for name in self.lowered.statics.entries
        }
        self.library = build_library(self.lowered.kernels, isa, folder)
        self.executor = self.start(threads)
        self.restart()

    def start(self, threads: int) -> CpuExecutor:
        """Another executor of the same kernels."""
        return CpuExecutor(
            self.lowered.plan, self, self.library, num_threads=threads, num_blocks=NUM_BLOCKS,  # type: ignore[arg-type]
            max_batched_tokens=self.max_tokens, max_sequences=16,
        )  # fmt: skip

    def address(self, name: str) -> int:
        """Where a packed weight is: this object takes the place of an artifact's weight file."""
        return self.data[name].ctypes.data

    def nbytes(self, name: str) -> int:
        return self.data[name].nbytes

    def restart(self) -> None:
        self.executor.fill_cache(NAN_BYTE)
        self.sequences, self.state = Sequences(), KVState()

    def use_threads(self, threads: int) -> None:
        """Go on with another number of threads and an empty cache."""
        self.executor.close()
        self.executor = self.start(threads)
        self.restart()

    def run(self, step: Tokens) -> list[Array]:
        """The compiled kernels' outputs, float32. Scratch memory is NaN before, and has been written to
        only where there are rows."""
        self._poison()
        joined = self.executor.execute(self.sequences.batch(step)).copy()
        self._check_scratch({"T": len(step.ids), "R": len(step.rows)})
        widths = [_width(v.type) for v in self.graph.outputs]
        parts = np.split(joined, np.cumsum(widths)[:-1], axis=1)
        return [
            p.reshape(len(p), *(int(d) for d in v.type.shape[1:]))
            for p, v in zip(parts, self.graph.outputs, strict=True)
        ]

    def _poison(self) -> None:
        for arenas in (self.executor._arenas, *self.executor._own_arenas):
            for arena in arenas.values():
                arena[:] = NAN_BYTE

    def _check_scratch(self, rows: dict[str, int]) -> None:
        for space, arena in self.executor._arenas.items():
            capacity = self.executor._capacity(rows[space])
            untouched = np.ones(len(arena), bool)
            for b in self.lowered.plan.buffers:
                if b.space == space:
                    start = capacity * b.offset
                    untouched[start : start + rows[space] * b.row_bytes] = False
            assert (arena[untouched] == NAN_BYTE).all(), f"a kernel writes past the rows of {space}"

    def interpret(self, step: Tokens) -> list[Array]:
        """The interpreter's outputs, float32, at the wanted rows."""
        self.state.batch = list(step.chunks)
        starts = [len(self.state.keys.get((0, s), ())) for s, _ in step.chunks]
        positions = [
            np.arange(start, start + n) for start, (_, n) in zip(starts, step.chunks, strict=True)
        ]
        inputs = {
            "input_ids": step.ids, "positions": np.concatenate(positions).astype(np.int32),
            "rows": step.rows,
        }  # fmt: skip
        with np.errstate(all="ignore"):
            found = interpret(self.graph, inputs, self.arrays, self.state)
        return [
            (a if v.type.shape[0] == ROWS else a[step.rows]).astype(np.float32)
            for a, v in zip(found, self.graph.outputs, strict=True)
        ]

    def pairs(self, step: Tokens) -> list[tuple[Array, Array]]:
        """(compiled, interpreted) per output."""
        return list(zip(self.run(step), self.interpret(step), strict=True))


def aligned(data: Array) -> Array:
    """A copy that begins at a cache line, as in an artifact."""
    raw = np.empty(data.nbytes + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    raw[skip : skip + data.nbytes] = data
    return raw[skip : skip + data.nbytes]


def relative_error(found: Array, wanted: Array) -> float:
    """The largest deviation over the largest magnitude; inf where one is NaN and the other is not."""
    if not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return math.inf
    return float(np.nanmax(np.abs(found - wanted)) / (np.nanmax(np.abs(wanted)) or 1.0))
