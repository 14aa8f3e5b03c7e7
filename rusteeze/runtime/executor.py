"""Runs a plan on the CPU: one native call per step.

Memory: weights are mapped from the artifact; scratch and cache pages are allocated at full size once,
but the operating system backs only what is touched. Scratch is laid out for a *capacity* of tokens:
each step uses the smallest of a few capacities that holds it, so that a decode step's scratch stays in
the cache; there is one table of addresses per capacity, and for one token one per thread: small work is
then done by each thread for itself (contract.Call.repeats).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rusteeze.artifact.contract import BLOCK_SIZE, STEP_INPUTS, TILE_FIELDS, Arg, Call, Cost, Plan
from rusteeze.artifact.plan_text import call_lines
from rusteeze.observe import LAUNCHES, Observer
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.ceilings import Ceilings, measure_ceilings
from rusteeze.runtime.launch import (
    BARRIER_FLAG,
    REPEAT_FLAG,
    Library,
    MachineCall,
    Program,
    ThreadPool,
)
from rusteeze.runtime.weights import WeightFile

ALIGNMENT = 64
ARENA_SLACK = 4096
"""Bytes behind an arena: kernels may read whole vectors past a row's last element."""
SMALLEST_CAPACITY = 16


def aligned_bytes(count: int) -> np.ndarray:
    """Zero-filled uint8, aligned to a cache line, backed by memory only where touched."""
    raw = np.zeros(count + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + count]


class CpuExecutor:
    """Implements rusteeze.runtime.interface.Executor for one artifact."""

    block_size = BLOCK_SIZE

    def __init__(
        self, plan: Plan, weights: WeightFile, library: Path, *, num_threads: int, num_blocks: int,
        max_batched_tokens: int = 512, max_sequences: int = 256,
    ) -> None:  # fmt: skip
        self.plan, self.num_blocks = plan, num_blocks
        self._observer = Observer.from_environment()
        self.max_batched_tokens = max_batched_tokens
        self.max_sequences = max_sequences
        self._weights = weights
        self._library = Library(library)
        self._pool = ThreadPool(self._library, num_threads)
        self._step = np.zeros(8, np.int64)
        self._capacities = _capacities(max_batched_tokens)
        self._programs: dict[tuple[int, int], Program] = {}
        self._arenas = {
            space: aligned_bytes(size * max_batched_tokens + ARENA_SLACK)
            for space, size in plan.arena_row_bytes.items()
        }
        self._own_arenas = [
            {space: aligned_bytes(size + ARENA_SLACK) for space, size in plan.arena_row_bytes.items()}
            for _ in range(num_threads)
        ]
        self._keys = {p.layer: aligned_bytes(p.key_bytes * num_blocks) for p in plan.pages}
        self._values = {p.layer: aligned_bytes(p.value_bytes * num_blocks) for p in plan.pages}
        self._inputs = {
            name: aligned_bytes(4 * count).view(np.int32) for name, count in self._input_sizes().items()
        }

    @property
    def max_model_len(self) -> int:
        return min(self.plan.max_model_len, self.num_blocks * BLOCK_SIZE)

    @property
    def vocab_size(self) -> int:
        return self.plan.vocab_size

    def _input_sizes(self) -> dict[str, int]:
        tokens = self.max_batched_tokens
        blocks = -(-self.plan.max_model_len // BLOCK_SIZE)
        sizes = dict.fromkeys(STEP_INPUTS, tokens)
        sizes["tiles"] = TILE_FIELDS * tokens
        sizes["block_tables"] = self.max_sequences * blocks
        return sizes

    def fill_cache(self, byte: int) -> None:
        """Overwrite all pages, for tests: 0xFF makes every element NaN."""
        for pages in (*self._keys.values(), *self._values.values()):
            pages[:] = byte

    def execute(self, batch: Batch) -> np.ndarray:
        """Logits f32[R, V], valid until the next call. ValueError when the batch exceeds a limit."""
        program, capacity = self._prepare(batch)
        self._pool.run(program, self._step)
        return self._logits(capacity, len(batch.rows))

    def execute_timed(self, batch: Batch) -> np.ndarray:
        """As ``execute``, for the times: see ThreadPool.run_timed. Calls are in the plan's order."""
        return self._pool.run_timed(self._prepare(batch)[0], self._step)

    @property
    def where(self) -> str:
        """What runs the model, for people."""
        return f"{self._pool.num_threads} threads"

    @property
    def device_bytes(self) -> None:
        """Not known: the operating system backs what is touched."""

    def calls(self, batch: Batch) -> list[tuple[str, str, Cost]]:
        """Kernel, origin and cost of each call, which are the same in every step."""
        return [(call.kernel, call.origin, call.cost) for call in self.plan.calls]

    def ceilings(self) -> Ceilings:
        """What the threads can do at most, measured now. LaunchError when the library cannot."""
        return measure_ceilings(self.run_alone, aligned_bytes, self._pool.num_threads)

    def run_alone(self, kernel: str, args: Sequence[int], number: int) -> None:
        """Run one kernel of the library that no plan calls, with step[0] = ``number``."""
        program = Program([(self._library.address(kernel), BARRIER_FLAG, args)])
        self._pool.run(program, np.array([number], np.int64))

    def _prepare(self, batch: Batch) -> tuple[Program, int]:
        """The program of a batch, whose arrays are in place, and the capacity of its rows."""
        tokens, rows = batch.num_tokens, len(batch.rows)
        if tokens > self.max_batched_tokens or batch.num_sequences > self.max_sequences:
            raise ValueError(f"a step of {tokens} tokens, {batch.num_sequences} sequences is too large")
        tiles = query_tiles(batch, self.plan.query_tokens)
        for name, array in (
            ("input_ids", batch.input_ids), ("positions", batch.positions), ("rows", batch.rows),
            ("slot_mapping", batch.slot_mapping), ("tiles", tiles.reshape(-1)),
            ("block_tables", batch.block_tables.reshape(-1)),
        ):  # fmt: skip
            self._inputs[name][: len(array)] = array
        self._step[:4] = (tokens, rows, len(tiles), batch.block_tables.shape[1])
        capacity = self._capacity(tokens), self._capacity(rows)
        return self._program(*capacity), capacity[1]

    def _capacity(self, count: int) -> int:
        return next(c for c in self._capacities if count <= c)

    def _logits(self, capacity: int, rows: int) -> np.ndarray:
        buffer = self.plan.buffers[self.plan.logits]
        start = capacity * buffer.offset
        flat = self._arenas["R"][start : start + rows * buffer.row_bytes].view(np.float32)
        return flat.reshape(rows, buffer.row_bytes // 4)[:, : self.vocab_size]

    def _program(self, tokens: int, rows: int) -> Program:
        """The plan's calls with addresses for these capacities."""
        key = (tokens, rows)
        if key not in self._programs:
            threads = self._pool.num_threads if tokens == 1 else 1
            first, *others = (
                [self._machine_call(call, key, thread) for call in self.plan.calls]
                for thread in range(threads)
            )
            self._programs[key] = Program(first, others)
            self._show_launches(tokens, rows)
        return self._programs[key]

    def _machine_call(self, call: Call, capacities: tuple[int, int], thread: int) -> MachineCall:
        """A call with the addresses of a thread."""
        lone = capacities[0] == 1
        flags = BARRIER_FLAG if (call.lone_barrier if lone else call.barrier) else 0
        if lone and call.repeats:
            flags |= REPEAT_FLAG
        args = [self._address(arg, capacities, thread) for arg in call.args]
        return self._library.address(call.kernel), flags, args

    def _show_launches(self, tokens: int, rows: int) -> None:
        """What a program launches, for those who watch: once, since every step launches the same."""
        if self._observer.shows(LAUNCHES):
            title = f"each step of up to {tokens} tokens, {rows} rows of logits launches"
            lines = call_lines(self.plan, self._weights.nbytes)
            self._observer.say(LAUNCHES, "\n".join([title, *lines]))

    def _address(self, arg: Arg, capacities: tuple[int, int], thread: int) -> int:
        if arg.kind == "buffer":
            buffer = self.plan.buffers[int(arg.which)]
            lone = buffer.private and capacities[0] == 1
            arenas = self._own_arenas[thread] if lone else self._arenas
            capacity = capacities["TR".index(buffer.space)]
            base = arenas[buffer.space].ctypes.data + capacity * buffer.offset
        elif arg.kind == "weight":
            base = self._weights.address(str(arg.which))
        elif arg.kind == "input":
            base = self._inputs[str(arg.which)].ctypes.data
        else:
            pages = self._keys if arg.kind == "key_pages" else self._values
            base = pages[int(arg.which)].ctypes.data
        return base + arg.offset

    def close(self) -> None:
        """Stop the helper threads."""
        self._pool.close()


def _capacities(largest: int) -> list[int]:
    sizes = [1]
    step = SMALLEST_CAPACITY
    while step < largest:
        sizes.append(step)
        step *= 4
    return [*(s for s in sizes if s < largest), largest]


def query_tiles(batch: Batch, query_tokens: int) -> np.ndarray:
    """int32 [n, 4]: each sequence's tokens of the step in tiles of at most ``query_tokens``
    (first row, number of rows, first position, sequence)."""
    lengths = np.diff(batch.query_start)
    counts = -(-lengths // query_tokens)
    sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
    before = np.cumsum(counts) - counts
    offset = (np.arange(len(sequence)) - before[sequence]) * query_tokens
    first = batch.query_start[sequence] + offset
    rows = np.minimum(query_tokens, lengths[sequence] - offset)
    return np.stack([first, rows, batch.positions[first], sequence], 1).astype(np.int32)
