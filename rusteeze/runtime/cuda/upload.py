"""Weights from the mapped file into device memory, through pinned staging.

A few threads take pieces of the file in turn. Each reads its piece from the file into one of two staging
buffers while the device copies the other, so reading, copying and whatever the main thread does meanwhile
(loading kernels) overlap.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from rusteeze.runtime.cuda.driver import call
from rusteeze.runtime.cuda.session import Session

PIECE_BYTES = 8 << 20
MOST_THREADS = 4


@dataclass(frozen=True)
class _Staging:
    memory: np.ndarray
    copied: Any
    """Event: the device has read all of it."""


class Upload:
    """Begins at once; ``wait`` for its end. CudaError of any thread comes out there.

    ``source``: host bytes; ``destination``: device address of as many bytes."""

    def __init__(
        self, session: Session, source: np.ndarray, destination: int, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._session, self._source, self._destination = session, source, destination
        self._piece_bytes = piece_bytes
        self._errors: list[BaseException] = []
        pieces = -(-len(source) // piece_bytes)
        count = min(MOST_THREADS, pieces)
        lanes = [
            (session.stream(), [_Staging(session.pinned(piece_bytes), session.event()) for _ in range(2)])
            for _ in range(count)
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(range(n, pieces, count), *lane), daemon=True)
            for n, lane in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return when all bytes have arrived."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _run(self, pieces: range, stream: Any, buffers: list[_Staging]) -> None:
        try:
            self._session.enter()
            for turn, piece in enumerate(pieces):
                self._copy(piece, stream, buffers[turn % 2], again=turn >= 2)
            call("cuStreamSynchronize", stream)
        except BaseException as error:
            self._errors.append(error)

    def _copy(self, piece: int, stream: Any, staging: _Staging, again: bool) -> None:
        start = piece * self._piece_bytes
        part = self._source[start : start + self._piece_bytes]
        if again:
            call("cuEventSynchronize", staging.copied)
        staging.memory[: len(part)] = part
        target = self._destination + start
        call("cuMemcpyHtoDAsync", target, staging.memory.ctypes.data, len(part), stream)
        call("cuEventRecord", staging.copied, stream)
