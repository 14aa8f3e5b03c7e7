"""Weights in safetensors files: headers checked before use, values mapped and never copied.

A header is eight bytes of length and JSON; the rest of the file is plain arrays. A model is one such
file, or several listed by an index. Everything stated is checked against the size of the file.
Format: https://github.com/huggingface/safetensors (section "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.weights import DENSE_DTYPES, Dense

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own implementation
MAX_INDEX_BYTES = 100_000_000

_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64,
    "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_DENSE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# How elements are held that numpy has; those that it has not (bf16, float8) as their bits.
_HELD = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1",
    "F8_E4M3": "u1", "F8_E8M0": "u1",
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: its element type as the format spells it, and its first and last byte."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    """One mapped file. ``header`` is the JSON text as stored, with its length in front."""

    path: Path
    entries: Mapping[str, TensorEntry]
    header: bytes
    bytes: np.ndarray  # uint8, the whole file, mapped

    def format_of(self, name: str) -> str:
        """Format of a weight. CheckpointError for element types that are not supported."""
        dtype = self.entries[name].dtype
        if dtype not in _DENSE:
            raise CheckpointError(f"{self.path} holds {name} as {dtype}; supported are F32, F16 and BF16")
        return _DENSE[dtype]

    def load(self, name: str) -> Dense:
        """The weight as a read-only view of the file."""
        entry, dtype = self.entries[name], self.format_of(name)
        stored = np.dtype(DENSE_DTYPES[dtype]).newbyteorder("<")
        values = self.bytes[entry.begin : entry.end].view(stored)
        return Dense(values.reshape(entry.shape), dtype)


    def array(self, name: str) -> np.ndarray:
        """What is stored under that name, as a read-only view of the file; bf16 and float8 as bits.
        CheckpointError for element types that no supported format has."""
        entry = self.entries[name]
        if entry.dtype not in _HELD:
            raise CheckpointError(f"{self.path} holds {name} as {entry.dtype}, which is not supported")
        return self.bytes[entry.begin : entry.end].view(_HELD[entry.dtype]).reshape(entry.shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Map one file and check its header. CheckpointError when it is not sound."""
    try:
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be opened ({e}); download the model again") from e
    length = int.from_bytes(bytes(data[:8]), "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} ends inside its header; download it again")
    header = bytes(data[: 8 + length])
    table = parse_json_object(header[8:], path)
    table.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in table.items()}
    _check_coverage(path, entries, 8 + length, len(data))
    return SafetensorsFile(path, entries, header, data)


def parse_json_object(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without repeated keys. CheckpointError, naming the file, for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name occurs twice")
        return table

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} holds no sound JSON ({str(e)[:100]}); download it again") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds JSON that is no object; download it again")
    return value


def _entry(path: Path, name: str, value: Any, start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path} describes {name!r} in no known way; download it again") from None
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    sound = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) and len(numbers) < 16
    if not isinstance(dtype, str) or not sound:
        raise CheckpointError(f"{path} describes {name!r} in no known way; download it again")
    if dtype not in _BITS:
        raise CheckpointError(f"{path} holds {name!r} in the unknown element type {dtype[:20]!r}")
    if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise CheckpointError(f"{path} gives {name!r} {end - begin} bytes, wrong for {dtype}{shape}")
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)


def _check_coverage(path: Path, entries: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """Tensors lie end to end and fill the file, as the format demands; so none lies outside."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise CheckpointError(f"{path} has a gap or an overlap before {name!r}; download it again")
        end = entry.end
    if end != size:
        raise CheckpointError(f"{path} has {size} bytes where its header wants {end}; download it again")


@dataclass(frozen=True, eq=False)
class SafetensorsModel:
    """The weight files of a folder. ``home`` maps each tensor to its file."""

    home: Mapping[str, SafetensorsFile]
    files: tuple[SafetensorsFile, ...]
    index: Path | None


def open_safetensors_model(folder: Path) -> SafetensorsModel:
    """model.safetensors, or the files that model.safetensors.index.json lists. CheckpointError when
    there are none, or they do not fit together."""
    if (folder / SINGLE).exists():
        file = open_safetensors(folder / SINGLE)
        return SafetensorsModel(dict.fromkeys(file.entries, file), (file,), None)
    if not (folder / INDEX).exists():
        raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; save the model as safetensors")
    return _open_shards(folder)


def _open_shards(folder: Path) -> SafetensorsModel:
    index = folder / INDEX
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} is too large to be an index")
    homes = parse_json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    shards = {name: _open_shard(folder, name) for name in _shard_names(index, homes)}
    for tensor, name in homes.items():
        if tensor not in shards[name].entries:
            raise CheckpointError(f"{folder / name} lacks {tensor}, which {INDEX} puts there")
    _refuse_duplicates(shards.values())
    home = {tensor: shards[name] for tensor, name in homes.items()}
    return SafetensorsModel(home, tuple(shards.values()), index)


def _shard_names(index: Path, homes: Mapping[str, Any]) -> list[str]:
    """A shard is a plain file name: nothing in an index may lead out of the folder."""
    names: dict[str, None] = {}
    for name in homes.values():
        plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name
        if not plain or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {str(name)[:80]!r}, which is no plain file name")
        names[name] = None
    return list(names)


def _open_shard(folder: Path, name: str) -> SafetensorsFile:
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder / name} is missing; download the model again")
    return open_safetensors(folder / name)


def _refuse_duplicates(files: Any) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        for tensor in file.entries:
            if tensor in seen:
                raise CheckpointError(f"{tensor} is in {seen[tensor]} and in {file.path}; which one counts?")
            seen[tensor] = file.path
