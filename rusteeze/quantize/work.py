"""What a quantisation has finished so far, on disk: a killed run goes on where it was.

A hidden folder beside the destination holds a file for each site and ``state.json`` with their hashes. It
belongs to one model, one set of options and one text; anything else starts afresh.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rusteeze.artifact.files import sha256_file, sync, sync_tree, write_atomic
from rusteeze.errors import UserError
from rusteeze.quantize.results import Quantised, from_tensors
from rusteeze.quantize.shards import save_tensors

Tensor = torch.Tensor
STATE = "state.json"
LOCK = "lock"
OUTPUT = "output"


@dataclass(frozen=True, eq=False)
class SiteRecord:
    """A finished site: codes by name of matrix, and the factors that its input's producer is to divide by."""

    codes: dict[str, Quantised]
    factors: Tensor | None


@dataclass
class Work:
    """``bits`` are the widths that were chosen for the sites, once that is done."""

    folder: Path
    key: str
    hashes: dict[str, str] = field(default_factory=dict)
    bits: list[int] | None = None

    def finished(self, site: int) -> SiteRecord | None:
        """What was saved for a site; None if nothing was, or what was has changed."""
        path = self._path(site)
        if self.hashes.get(path.name) is None or not path.is_file() or sha256_file(path) != self.hashes[path.name]:
            return None
        return _decode(load_file(path))

    def is_saved(self, site: int) -> bool:
        """Whether a file is kept for a site, sound or not."""
        return self._path(site).name in self.hashes and self._path(site).is_file()

    def save(self, site: int, record: SiteRecord) -> None:
        path = self._path(site)
        save_tensors(_encode(record), path)
        sync(path)
        self.hashes[path.name] = sha256_file(path)
        self._write()

    def choose_bits(self, bits: list[int]) -> None:
        self.bits = bits
        self._write()

    def new_output(self) -> Path:
        """An empty folder to write the result into, on the file system of its destination."""
        output = self.folder / OUTPUT
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        return output

    def publish(self, output: Path, destination: Path) -> None:
        """Move the result to its place, when it is on the disk, and forget the work."""
        sync_tree(output)
        output.replace(destination)
        sync(destination.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, site: int) -> Path:
        return self.folder / f"site-{site:05d}.safetensors"

    def _write(self) -> None:
        state = {"key": self.key, "hashes": self.hashes, "bits": self.bits}
        write_atomic(self.folder / STATE, json.dumps(state, indent=1).encode())


@contextmanager
def open_work(destination: Path, key: str) -> Iterator[Work]:
    """The work of an earlier run with the same key, or new work; held until the block ends. UserError if
    another process is at it."""
    folder = destination.with_name(f".{destination.name}.quantizing")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _hold(descriptor, destination)
        state = _read_state(folder)
        if state.get("key") != key:
            for path in folder.glob("site-*.safetensors"):
                path.unlink()
            state = {"hashes": {}, "bits": None}
        shutil.rmtree(folder / OUTPUT, ignore_errors=True)  # half a result takes room, and is made anew
        work = Work(folder, key, state["hashes"], state["bits"])
        try:
            yield work
        finally:
            if not work.hashes and work.bits is None:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _hold(descriptor: int, destination: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise UserError(f"another process is making {destination}; wait for it, or choose another folder") from e


def _read_state(folder: Path) -> dict[str, Any]:
    """What state.json says; nothing if it is missing or damaged."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        hashes, bits = state["hashes"], state["bits"]
        sound = isinstance(hashes, dict) and (bits is None or isinstance(bits, list))
        return state if sound else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _encode(record: SiteRecord) -> dict[str, Tensor]:
    tensors = {} if record.factors is None else {"factors": record.factors}
    for name, codes in record.codes.items():
        tensors |= {f"{codes.bits}|{part}|{name}": t.contiguous() for part, t in codes.tensors().items()}
    return tensors


def _decode(tensors: dict[str, Tensor]) -> SiteRecord:
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    factors = tensors.pop("factors", None)
    for key, tensor in tensors.items():
        bits, part, name = key.split("|", 2)
        found.setdefault((name, int(bits)), {})[part] = tensor
    return SiteRecord({name: from_tensors(bits, parts) for (name, bits), parts in found.items()}, factors)
