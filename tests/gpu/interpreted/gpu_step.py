"""Lowers a graph for GPUs and runs steps of it in the interpreter; sequences own random cache blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from interpreter import InterpretedExecutor

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.gpu.lower import GpuOptions, lower_for_gpu
from rusteeze.codegen.gpu.plan import make_cuda_plan
from rusteeze.ir import Graph
from rusteeze.runtime.batch import Batch
from rusteeze.weights import Weight

Array = np.ndarray


class GpuStep:
    """``graph``: after all passes. Every capacity exceeds the step's counts, by ``spare``."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, Weight], folder: Path, cache_dtype: str, max_model_len: int,
        num_blocks: int = 32, spare: int = 1,
    ) -> None:  # fmt: skip
        self.lowered = lower_for_gpu(graph, GpuOptions(cache_dtype, max_model_len))
        self.plan = make_cuda_plan(self.lowered, {}, ())
        statics = self.lowered.statics
        packed = {name: statics.data(name, weights.__getitem__) for name in statics.entries}
        for name, data in packed.items():
            assert data.nbytes == statics.nbytes(name)
        self.executor = InterpretedExecutor(self.plan, self.lowered.kernels, packed, folder, num_blocks)
        self.blocks = list(np.random.default_rng(3).permutation(num_blocks))
        self.tables: dict[int, list[int]] = {}
        self.spare = spare

    def run(self, chunks: Sequence[tuple[int, int]], ids: Array, positions: Array, rows: Array) -> Array:
        """Outputs [R, n] of a step; ``chunks`` lists (sequence, number of its tokens) in row order."""
        row, slots, starts, ends, order = 0, [], [0], [], []
        for sequence, n in chunks:
            own = positions[row : row + n]
            table = self.tables.setdefault(sequence, [])
            while len(table) * BLOCK_SIZE <= own[-1]:
                table.append(int(self.blocks.pop()))
            slots += [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in own]
            row += n
            starts.append(row)
            ends.append(int(own[-1]) + 1)
            order.append(table)
        width = max(map(len, order))
        tables = np.array([t + [0] * (width - len(t)) for t in order], np.int32)
        batch = Batch(
            ids, positions, np.array(slots, np.int32), rows, np.array(starts, np.int32), np.array(ends, np.int32), tables,
        )  # fmt: skip
        return self.executor.execute(batch, self.spare)
