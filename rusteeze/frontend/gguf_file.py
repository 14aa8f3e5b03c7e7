"""Header of a GGUF file: metadata, and where each tensor lies. Knows no model and decodes nothing.

The file is mapped, not read. Every count, length and offset in it is checked against the size of the
file before anything of that size is made, so a damaged or hostile file costs no memory and ends in a
CheckpointError. Format: ggml/docs/gguf.md of llama.cpp; versions 2 and 3, little-endian.

    file = open_gguf(Path("model.gguf"))
    file.metadata["llama.block_count"]                # 30
    file.blocks("blk.0.attn_q.weight")                # uint8 [N, bytes of a row], a view of the file
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from rusteeze.frontend.checkpoint_errors import CheckpointError

Scalar = int | float | bool | str
Value = Scalar | list[str] | np.ndarray
Item = TypeVar("Item")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_METADATA = 1 << 16  # entries; real files have dozens
MAX_TENSORS = 1 << 20
MAX_NAME_BYTES = 1 << 10
MAX_STRING_BYTES = 1 << 24  # a chat template is some kilobytes
MAX_ARRAY = 1 << 22  # elements; vocabularies have some hundred thousand
MAX_RANK = 4
DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: ("u1", int), 1: ("i1", int), 2: ("u2", int), 3: ("i2", int), 4: ("u4", int), 5: ("i4", int),
    6: ("f4", float), 7: ("u1", bool), 10: ("u8", int), 11: ("i8", int), 12: ("f8", float),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. ``shape`` is outermost axis first; ``offset`` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    num_bytes: int

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape as bytes: [..., bytes of a row]."""
        elements, size = GGML_QUANT_SIZES[self.type]
        return (*self.shape[:-1], self.shape[-1] // elements * size)


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """A parsed header over the mapped file. ``data_start`` is the size of header and padding."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    data_start: int
    bytes: np.ndarray  # uint8, the whole file, mapped

    def blocks(self, name: str) -> np.ndarray:
        """The tensor's stored bytes as uint8 [..., bytes of a row]; a view of the file."""
        info = self.tensors[name]
        return self.bytes[info.offset : info.offset + info.num_bytes].reshape(info.block_shape)


def open_gguf(path: Path) -> GGUFFile:
    """Map and parse a file. CheckpointError when it is no sound GGUF file."""
    try:
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))  # plain arrays slice faster
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: cannot be opened ({e}); give a readable .gguf file") from e
    return _Header(path, data).parse()


class _Header:
    """A cursor over the mapped file; every method raises CheckpointError rather than read past it."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.position = path, data, 0

    def parse(self) -> GGUFFile:
        self.check_magic()
        num_tensors, num_entries = self.number("u8"), self.number("u8")
        self.limit("tensors", num_tensors, MAX_TENSORS)
        self.limit("metadata entries", num_entries, MAX_METADATA)
        metadata = self.unique("metadata key", num_entries, self.entry)
        table = self.unique("tensor", num_tensors, self.tensor)
        start = self.data_start(metadata)
        tensors = {name: self.place(start, name, *rest) for name, rest in table.items()}
        self.check_overlap(tensors)
        return GGUFFile(self.path, metadata, tensors, start, self.data)

    def check_magic(self) -> None:
        if bytes(self.take(4, "the magic bytes")) != MAGIC:
            raise self.error("does not begin with GGUF, so it is no GGUF file")
        version = self.number("u4")
        if version & 0xFFFF == 0 and version:
            raise self.error("is big-endian; convert it with gguf_convert_endian.py of llama.cpp")
        if version not in VERSIONS:
            raise self.error(f"is of version {version}, not 2 or 3; convert the model again")

    def unique(self, what: str, count: int, read: Callable[[], tuple[str, Item]]) -> dict[str, Item]:
        found: dict[str, Item] = {}
        for _ in range(count):
            name, value = read()
            if name in found:
                raise self.error(f"holds the {what} {name!r} twice; download or convert it again")
            found[name] = value
        return found

    def entry(self) -> tuple[str, Value]:
        key = self.string("a metadata key", MAX_NAME_BYTES)
        return key, self.value(key, self.number("u4"))

    def value(self, key: str, kind: int) -> Value:
        if kind in _SCALARS:
            dtype, convert = _SCALARS[kind]
            return convert(self.number(dtype))
        if kind == _STRING:
            return self.string(key, MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key, self.number("u4"), self.number("u8"))
        raise self.error(f"has a value of unknown type {kind} under {key!r}; is the file damaged?")

    def array(self, key: str, kind: int, count: int) -> Value:
        self.limit(f"elements of {key!r}", count, MAX_ARRAY)
        if kind == _STRING:
            self.require(8 * count, key)  # each string has at least its length
            return [self.string(key, MAX_STRING_BYTES) for _ in range(count)]
        if kind not in _SCALARS:
            raise self.error(f"has an array of type {kind} under {key!r}, which no model uses")
        dtype = np.dtype(_SCALARS[kind][0]).newbyteorder("<")
        values = self.take(count * dtype.itemsize, key).view(dtype)
        return values != 0 if kind == _BOOL else values

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self.string("a tensor name", MAX_NAME_BYTES)
        rank = self.number("u4")
        if not 1 <= rank <= MAX_RANK:
            raise self.error(f"gives tensor {name!r} {rank} axes, not 1 to {MAX_RANK}")
        shape = tuple(self.number("u8") for _ in range(rank))[::-1]
        return name, (shape, self.number("u4"), self.number("u8"))

    def data_start(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.error(f"has general.alignment {alignment!r}, which is no sound power of two")
        self.alignment = alignment
        return -(-self.position // alignment) * alignment

    def place(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        """Python integers do not wrap, so the products below are exact whatever the file says."""
        try:
            type = GGMLQuantizationType(kind)
        except ValueError:
            raise self.error(f"stores {name!r} as unknown ggml type {kind}; a newer gguf may know it") from None
        elements, size = GGML_QUANT_SIZES[type]
        if min(shape) < 1 or shape[-1] % elements:
            raise self.error(f"has shape {list(shape)} for {name!r}, impossible for type {type.name}")
        num_bytes = math.prod(shape) // elements * size
        if offset % self.alignment:
            raise self.error(f"puts {name!r} at offset {offset}, no multiple of {self.alignment}")
        if start + offset + num_bytes > len(self.data):
            raise self.error(f"ends before tensor {name!r} does; download it again")
        return TensorInfo(name, shape, type, start + offset, num_bytes)

    def check_overlap(self, tensors: Mapping[str, TensorInfo]) -> None:
        end, last = 0, ""
        for info in sorted(tensors.values(), key=lambda t: t.offset):
            if info.offset < end:
                raise self.error(f"has overlapping tensors {last!r} and {info.name!r}")
            end, last = info.offset + info.num_bytes, info.name

    def string(self, what: str, limit: int) -> str:
        length = self.number("u8")
        self.limit(f"bytes of {what}", length, limit)
        try:
            return bytes(self.take(length, what)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"has text that is not UTF-8 in {what}; is it damaged?") from None

    def number(self, dtype: str) -> Any:
        size = int(dtype[1])
        return struct.unpack_from(_STRUCT[dtype], self.take(size, "a number"))[0]

    def take(self, count: int, what: str) -> np.ndarray:
        self.require(count, what)
        self.position += count
        return self.data[self.position - count : self.position]

    def require(self, count: int, what: str) -> None:
        if count > len(self.data) - self.position:
            raise self.error(f"ends inside its header, at {what}; download it again")

    def limit(self, what: str, count: int, most: int) -> None:
        if count > most:
            raise self.error(f"claims {count} {what} (at most {most} are accepted); is it damaged?")

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {problem}")


_STRUCT = {
    "u1": "<B", "i1": "<b", "u2": "<H", "i2": "<h", "u4": "<I", "i4": "<i", "u8": "<Q", "i8": "<q",
    "f4": "<f", "f8": "<d",
}  # fmt: skip
