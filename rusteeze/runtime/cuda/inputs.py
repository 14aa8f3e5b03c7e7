"""The inputs of a step in device memory, and how they get there.

Small inputs lie one behind the other, each with room for its capacity, so that one copy moves them all
and their addresses depend on capacities alone. Block tables are large and change rarely: they have fixed
rows, and are copied when they differ from what the device has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rusteeze.artifact.contract import TILE_FIELDS
from rusteeze.artifact.cuda_contract import NUM_COUNTS, Capacities
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.cuda.driver import call
from rusteeze.runtime.cuda.session import Session

ALIGNED = 64
"""int32 elements: inputs begin at multiples of 256 bytes, as if each were allocated alone."""


class StepInputs:
    """Buffers for steps within ``most``, of up to ``max_sequences`` sequences."""

    def __init__(self, session: Session, most: Capacities, max_sequences: int) -> None:
        total = self.total_bytes(most, max_sequences)
        small, width = _layout(most)[1], most.blocks
        self._device = session.allocate(total, "step inputs")
        self._tables = self._device + 4 * small
        memory = session.pinned(total).view(np.int32)
        self._host, self._mirror = memory[:small], memory[small:].reshape(max_sequences, width)
        self._known = False  # whether the device has what the mirror has

    @staticmethod
    def total_bytes(most: Capacities, max_sequences: int) -> int:
        """Device memory that all inputs take."""
        return 4 * (_layout(most)[1] + max_sequences * most.blocks)

    def address(self, name: str, capacities: Capacities) -> int:
        """Device address of an input. KeyError when there is none of that name."""
        if name == "block_tables":
            return self._tables
        return self._device + 4 * _layout(capacities)[0][name]

    def upload(self, batch: Batch, tiles: np.ndarray, capacities: Capacities, stream: Any) -> None:
        """Queue the copies. The copies of the step before must have been done."""
        places, length = _layout(capacities)
        counts = np.array([batch.num_tokens, len(batch.rows), len(tiles), batch.num_sequences])
        arrays = {
            "input_ids": batch.input_ids, "positions": batch.positions, "rows": batch.rows,
            "slot_mapping": batch.slot_mapping, "tiles": tiles.reshape(-1), "counts": counts,
        }  # fmt: skip
        for name, array in arrays.items():
            self._host[places[name] : places[name] + len(array)] = array
        call("cuMemcpyHtoDAsync", self._device, self._host.ctypes.data, 4 * length, stream)
        self._upload_tables(batch.block_tables, stream)

    def _upload_tables(self, tables: np.ndarray, stream: Any) -> None:
        rows, width = tables.shape
        there = self._mirror[:rows, :width]
        if self._known and np.array_equal(there, tables):
            return
        there[:] = tables
        changed = self._mirror[:rows] if self._known else self._mirror
        self._known = False  # until the copy is queued
        call("cuMemcpyHtoDAsync", self._tables, changed.ctypes.data, changed.nbytes, stream)
        self._known = True


def _layout(capacities: Capacities) -> tuple[dict[str, int], int]:
    """Where each small input begins, in int32 elements, and where all end."""
    tokens = capacities.tokens
    sizes = {
        "counts": NUM_COUNTS, "input_ids": tokens, "positions": tokens, "slot_mapping": tokens,
        "rows": capacities.rows, "tiles": TILE_FIELDS * capacities.tiles,
    }  # fmt: skip
    places, end = {}, 0
    for name, size in sizes.items():
        places[name] = end
        end += -(-size // ALIGNED) * ALIGNED
    return places, end
