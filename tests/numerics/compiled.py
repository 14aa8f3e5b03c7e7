"""Compiles a traced model in memory and runs it on the harness's batches, with shuffled cache blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from harness import MAX_MODEL_LEN
from harness import Batch as Chunks

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.cpu.build import build_library
from rusteeze.codegen.cpu.isa import ALL, Isa
from rusteeze.codegen.cpu.lower import LoweringOptions, lower
from rusteeze.codegen.statics import plain
from rusteeze.compiler import choose_kv_dtype, optimize
from rusteeze.config import CompileOptions
from rusteeze.ir import Graph
from rusteeze.passes.sort_columns import SortedWeight
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.launch import runs_here
from rusteeze.weights import Weight

Array = np.ndarray
NUM_BLOCKS = 32
MAX_BATCHED_TOKENS = 64
NAN_BYTE = 0xFF


def host_isa(name: str | None = None) -> Isa:
    """The instruction set of that name, by default the best one of this machine."""
    return next(
        isa for isa in ALL if runs_here(isa.machine, isa.requires) and name in (None, isa.name)
    )


class MemoryWeights:
    """Packed weights in memory, in place of an artifact's file."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(arrays)

    def address(self, name: str) -> int:
        return self.arrays[name].ctypes.data


class CompiledStep:
    """Executes the harness's batches with compiled kernels; every sequence owns random cache blocks."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Array | Weight], constants: Mapping[str, Array], folder: Path,
        activations: str = "f32", threads: int = 1, isa: Isa | None = None, dtype: str = "f32",
        kv_dtype: str = "auto", columns: Mapping[str, SortedWeight] | None = None,
    ) -> None:  # fmt: skip
        def load(name: str) -> Weight:
            stored = weights[name]
            if not isinstance(stored, np.ndarray):
                return stored  # as a checkpoint holds it
            weight = plain(stored)
            matrix = name not in constants and weight.values.ndim > 1
            return weight.converted(dtype) if matrix else weight

        for name, value in graph.weights.items():
            value.format = load(name).format
        kv_dtype = choose_kv_dtype(activations, CompileOptions(kv_dtype=kv_dtype))
        optimize(graph, dict(constants), activations, kv_dtype, columns=columns)
        lowered = lower(graph, LoweringOptions(MAX_MODEL_LEN))
        packed = {
            name: lowered.statics.data(name, load)
            for name in lowered.statics.entries
        }
        for name, data in packed.items():
            assert data.nbytes == lowered.statics.nbytes(name)
        self._library = build_library(lowered.kernels, isa or host_isa(), folder)
        self._plan, self._weights = lowered.plan, MemoryWeights(packed)
        self.executor = self.new_executor(threads, NUM_BLOCKS)
        self.executor.fill_cache(NAN_BYTE)
        self.blocks = list(np.random.default_rng(3).permutation(NUM_BLOCKS))
        self.tables: dict[int, list[int]] = {}

    def new_executor(self, threads: int, num_blocks: int) -> CpuExecutor:
        """Another executor of the same kernels and weights, with a cache of its own."""
        return CpuExecutor(
            self._plan, self._weights, self._library, num_threads=threads, num_blocks=num_blocks,
            max_batched_tokens=MAX_BATCHED_TOKENS,
        )  # fmt: skip

    def __call__(self, chunks: Chunks) -> Array:
        row = 0
        slots, starts, ends, order = [], [0], [], []
        for sequence, n in chunks.chunks:
            positions = chunks.positions[row : row + n]
            table = self.tables.setdefault(sequence, [])
            while len(table) * BLOCK_SIZE <= positions[-1]:
                table.append(int(self.blocks.pop()))
            slots += [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]
            row += n
            starts.append(row)
            ends.append(int(positions[-1]) + 1)
            order.append(table)
        width = max(map(len, order))
        tables = np.array([t + [0] * (width - len(t)) for t in order], np.int32)
        batch = Batch(
            chunks.input_ids, chunks.positions, np.array(slots, np.int32), chunks.rows,
            np.array(starts, np.int32), np.array(ends, np.int32), tables,
        )  # fmt: skip
        return self.executor.execute(batch).copy()

    def close(self) -> None:
        self.executor.close()
