"""Runs a plan on an NVIDIA GPU: one graph launch per step, once a kind of step has come twice.

A step's kind is its capacities (rusteeze.runtime.cuda.capacities). The first step of a kind is launched
call by call, which also makes the driver load what it loads lazily; if the kind comes again and is of a
size that repeats (the plan's buckets), its launches are captured and replayed from then on.

Not run on a GPU so far: tests run it against a driver that keeps device memory in host memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rusteeze.artifact.contract import BLOCK_SIZE, Cost
from rusteeze.artifact.cuda_contract import Address, Binary, Capacities, CudaPlan
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.ceilings import Ceilings
from rusteeze.runtime.cuda.capacities import Sizes
from rusteeze.runtime.cuda.ceilings import measure_copying
from rusteeze.runtime.cuda.driver import CudaError, LostDevice, call
from rusteeze.runtime.cuda.inputs import StepInputs
from rusteeze.runtime.cuda.kernels import LoadedKernel
from rusteeze.runtime.cuda.program import Graph, Program, scratch_bytes
from rusteeze.runtime.cuda.session import Session
from rusteeze.runtime.executor import query_tiles

_log = logging.getLogger(__name__)

MOST_KINDS = 256
"""Kinds of steps that are kept; the one used longest ago goes first."""


class CudaExecutor:
    """Implements rusteeze.runtime.interface.Executor for one artifact on one device.

    ``weights``: device address of every weight. The session is the executor's from now on: ``close``
    closes it. CudaError when the device
    has no room."""

    block_size = BLOCK_SIZE

    def __init__(
        self, session: Session, plan: CudaPlan, kernels: Sequence[LoadedKernel],
        weights: Mapping[str, int], *, num_blocks: int, max_batched_tokens: int, max_sequences: int,
    ) -> None:  # fmt: skip
        self.plan, self.num_blocks = plan, num_blocks
        self.max_batched_tokens, self.max_sequences = max_batched_tokens, max_sequences
        self._session, self._kernels, self._weights = session, kernels, weights
        self._sizes = Sizes(plan.buckets, max_batched_tokens, self.max_model_len)
        most = self._sizes.most
        self._stream = session.stream()
        self._inputs = StepInputs(session, most, max_sequences)
        self._arenas = {
            space: session.allocate(size * max_batched_tokens, f"scratch {space}")
            for space, size in plan.arena_row_bytes.items()
        }
        self._workspace = session.allocate(plan.workspace_bytes, "workspace")
        self._scratch = session.allocate(scratch_bytes(plan, [k.binary for k in kernels], most), "kernels' scratch")
        self._keys = {p.layer: session.allocate(p.key_bytes * num_blocks, "keys") for p in plan.pages}
        self._values = {p.layer: session.allocate(p.value_bytes * num_blocks, "values") for p in plan.pages}
        self._staging = np.zeros(0, np.uint8)
        self._events: list[Any] = []
        self._kinds: OrderedDict[Capacities, _Kind] = OrderedDict()
        session.at_close(self._drop_kinds)
        if plan.workspace_bytes:
            call("cuMemsetD8Async", self._workspace, 0, plan.workspace_bytes, self._stream)
            call("cuStreamSynchronize", self._stream)

    @property
    def max_model_len(self) -> int:
        return min(self.plan.max_model_len, self.num_blocks * BLOCK_SIZE)

    @property
    def vocab_size(self) -> int:
        return self.plan.vocab_size

    @property
    def where(self) -> str:
        """What runs the model, for people."""
        return self._session.device.name

    @property
    def device_bytes(self) -> int:
        """Device memory that the model takes: weights, scratch and all pages."""
        return self._session.allocated_bytes

    def execute(self, batch: Batch) -> np.ndarray:
        """Logits f32[R, V], valid until the next call. ValueError when the batch exceeds a limit,
        CudaError when the device fails; any thread may call, one at a time."""
        capacities, kind = self._prepare(batch)
        kind.run(self._stream)
        logits = self._fetch((self.plan.logits,), len(batch.rows), capacities)[0].view(np.float32)
        return logits[:, : self.vocab_size]

    def execute_for_best(self, batch: Batch) -> np.ndarray:
        """As ``execute``, for the likeliest tokens: int64 [R], -1 where a row is not finite. Logits stay on
        the device."""
        capacities, kind = self._prepare(batch)
        kind.run(self._stream)
        found = self._fetch(self.plan.best, len(batch.rows), capacities)
        values, places = (rows[:, : self.plan.best_parts] for rows in found)
        each, part = np.arange(len(batch.rows)), values.view(np.float32).argmax(axis=1)
        finite = np.isfinite(values.view(np.float32)[each, part])
        tokens: np.ndarray = np.where(finite, places[each, part], -1).astype(np.int64)
        return tokens

    def execute_timed(self, batch: Batch) -> np.ndarray:
        """As ``execute``, call by call, for the times: nanoseconds int64 [1, calls, 3] by the device's clock,
        begin, end and end again (nobody waits), from the first call's begin. A call's time includes the
        gap before its kernels begin."""
        _, kind = self._prepare(batch)
        while len(self._events) <= len(self.plan.calls):
            self._events.append(self._session.event(timing=True))
        kind.program.launch_timed(self._stream, self._events)
        call("cuStreamSynchronize", self._stream)
        moments = [0.0] + [
            call("cuEventElapsedTime", self._events[0], event) for event in self._events[1:]
        ]
        stamps = [(begin, end, end) for begin, end in pairwise(moments)]
        return np.rint(np.array([stamps]) * 1e6).astype(np.int64)

    def calls(self, batch: Batch) -> list[tuple[str, str, Cost]]:
        """Kernels, origin and cost of each call that a step makes."""
        names = self._prepare(batch)[1].program.names
        return [(n, c.origin, c.cost) for n, c in zip(names, self.plan.calls, strict=True)]

    def fill_cache(self, byte: int) -> None:
        """Overwrite all pages, for measuring and tests."""
        self._session.enter()
        for pages in self.plan.pages:
            for address, size in (
                (self._keys[pages.layer], pages.key_bytes), (self._values[pages.layer], pages.value_bytes),
            ):  # fmt: skip
                if size:
                    call("cuMemsetD8Async", address, byte, size * self.num_blocks, self._stream)
        call("cuStreamSynchronize", self._stream)

    def ceilings(self) -> Ceilings:
        """What the device can do at most, measured now."""
        self._session.enter()
        return measure_copying(self._session, self._stream)

    def close(self) -> None:
        """Give back everything on the device. Further calls do nothing."""
        self._session.close()

    def _prepare(self, batch: Batch) -> tuple[Capacities, _Kind]:
        """The kind of step, with the batch on its way to the device."""
        if batch.num_tokens > self.max_batched_tokens or batch.num_sequences > self.max_sequences:
            raise ValueError(
                f"a step of {batch.num_tokens} tokens, {batch.num_sequences} sequences is too large"
            )
        self._session.enter()
        tiles = query_tiles(batch, self.plan.query_tokens)
        capacities = self._sizes.fit(batch, len(tiles))
        kind = self._kind(capacities)
        self._inputs.upload(batch, tiles, capacities, self._stream)
        return capacities, kind

    def _kind(self, capacities: Capacities) -> _Kind:
        if capacities in self._kinds:
            self._kinds.move_to_end(capacities)
            return self._kinds[capacities]
        program = Program(
            self.plan, self._kernels, capacities, lambda a: self._address(a, capacities), self._scratch
        )
        repeats = capacities.tokens <= max(self.plan.buckets, default=0)
        kind = self._kinds[capacities] = _Kind(program, repeats)
        if len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)[1].close()
        return kind

    def _drop_kinds(self) -> None:
        for kind in self._kinds.values():
            kind.close()
        self._kinds.clear()

    def _address(self, address: Address, capacities: Capacities) -> int:
        which = address.which
        if address.memory == "buffer":
            buffer = self.plan.buffers[int(which)]
            rows = capacities.tokens if buffer.space == "T" else capacities.rows
            base = self._arenas[buffer.space] + rows * buffer.offset
        elif address.memory == "weight":
            base = self._weights[str(which)]
        elif address.memory == "input":
            base = self._inputs.address(str(which), capacities)
        elif address.memory == "workspace":
            base = self._workspace
        else:
            base = (self._keys if address.memory == "key_pages" else self._values)[int(which)]
        return base + address.offset

    def _fetch(self, which: Sequence[int], rows: int, capacities: Capacities) -> list[np.ndarray]:
        """Wait for the step; the rows of some buffers, int32 [rows, row_bytes / 4], in pinned memory."""
        buffers = [self.plan.buffers[number] for number in which]
        size = sum(rows * b.row_bytes for b in buffers)
        if size > len(self._staging):
            self._staging = self._session.pinned(capacities.rows * sum(b.row_bytes for b in buffers))
        found, start = [], 0
        for b in buffers:
            target = self._staging[start : start + rows * b.row_bytes]
            start += len(target)
            if rows:
                source = self._arenas[b.space] + capacities.rows * b.offset
                call("cuMemcpyDtoHAsync", target.ctypes.data, source, len(target), self._stream)
            found.append(target.view(np.int32).reshape(rows, b.row_bytes // 4))
        call("cuStreamSynchronize", self._stream)
        return found


class _Kind:
    """Launches of a kind of step, and how they are done. ``repeats``: it is worth a graph."""

    def __init__(self, program: Program, repeats: bool) -> None:
        self.program = program
        self._uses, self._repeats = 0, repeats
        self._graph: Graph | None = None

    def run(self, stream: Any) -> None:
        """Queue all launches."""
        if self._repeats and self._uses == 1:
            self._graph = self._captured(stream)
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self.program.launch(stream)
        self._uses += 1

    def _captured(self, stream: Any) -> Graph | None:
        try:
            return self.program.capture(stream)
        except CudaError as error:
            # a stream whose capture does not end is lost; else, for want of memory, say, it goes on, slower
            if isinstance(error, LostDevice) or error.function == "cuStreamEndCapture":
                raise
            _log.warning("steps of one kind are launched call by call: %s", error)
            self._repeats = False
            return None

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()


def fixed_bytes(
    plan: CudaPlan, binaries: Sequence[Binary], max_batched_tokens: int, max_sequences: int
) -> int:
    """Device memory that an executor takes beside weights, arenas and pages. ``binaries``: of the plan's
    kernels, in order."""
    most = Sizes(plan.buckets, max_batched_tokens, plan.max_model_len).most
    return (
        plan.workspace_bytes
        + scratch_bytes(plan, binaries, most)
        + StepInputs.total_bytes(most, max_sequences)
    )
