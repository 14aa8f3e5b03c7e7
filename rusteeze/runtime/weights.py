"""The artifact's weights, mapped into memory and never copied."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np

MOST_HEADER_BYTES = 100 << 20


class WeightFile:
    """A safetensors file of packed weights. ``address(name)`` points into the mapping.

    ValueError when the file is not what its header says."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as f:
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, np.uint8)
        length = int.from_bytes(self._map[:8], "little")
        if length > min(MOST_HEADER_BYTES, len(self._bytes) - 8):
            raise ValueError(f"{path.name}: header of {length} bytes in a file of {len(self._bytes)}")
        header = json.loads(self._map[8 : 8 + length])
        start = 8 + length
        self._offsets: dict[str, tuple[int, int]] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (start + int(o) for o in entry["data_offsets"])
            if not start <= begin <= end <= len(self._bytes):
                raise ValueError(f"{path.name}: {name} lies outside the file")
            self._offsets[name] = (begin, end - begin)

    def address(self, name: str) -> int:
        return self._bytes.ctypes.data + self._offsets[name][0]

    def offset(self, name: str) -> int:
        """Bytes from the start of the file."""
        return self._offsets[name][0]

    def bytes_from(self, start: int) -> np.ndarray:
        """The file from byte ``start`` on, read-only uint8."""
        return self._bytes[start:]

    def nbytes(self, name: str) -> int:
        return self._offsets[name][1]

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor, read-only uint8, mapped from the file."""
        begin, size = self._offsets[name]
        return self._bytes[begin : begin + size]

    @property
    def total_bytes(self) -> int:
        return len(self._bytes)

    def names(self) -> list[str]:
        return list(self._offsets)
