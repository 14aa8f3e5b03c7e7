"""Tensors into safetensors files: one file, or several of bounded size with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

Tensor = torch.Tensor
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 1 << 30


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one file. OSError where the file system objects, which the package wraps."""
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as e:
        if (code := re.search(r"os error (\d+)", str(e))) is None:
            raise
        raise OSError(int(code[1]), str(e)) from e


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], limit: int = SHARD_BYTES) -> int:
    """Write all tensors; the number of their bytes. No more than one file's worth is held at once."""
    drafts: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total = 0

    def flush() -> None:
        nonlocal held, held_bytes
        save_tensors(held, folder / _draft(len(drafts)))
        drafts.append(list(held))
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > limit:
            flush()
        held[name] = tensor.contiguous()
        held_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    _name_shards(folder, drafts, total)
    return total


def _name_shards(folder: Path, drafts: list[list[str]], total: int) -> None:
    if len(drafts) == 1:
        (folder / _draft(0)).replace(folder / SINGLE)
        return
    homes: dict[str, str] = {}
    for i, names in enumerate(drafts):
        shard = f"model-{i + 1:05d}-of-{len(drafts):05d}.safetensors"
        (folder / _draft(i)).replace(folder / shard)
        homes |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _draft(number: int) -> str:
    return f"draft-{number:05d}.safetensors"
