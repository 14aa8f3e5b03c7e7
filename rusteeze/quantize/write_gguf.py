"""A GGUF file made of another: its metadata and tensors, but for matrices in blocks Q4_0 or Q8_0.

A block holds 32 codes of a row behind their scale in f16: w = scale * (code - 2**(bits-1)). Rows go back into the order
that converters give them, which the reader undoes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType

from rusteeze.errors import UserError
from rusteeze.frontend.checkpoint import Checkpoint
from rusteeze.frontend.gguf_model import GGUFCheckpoint
from rusteeze.quantize.assemble import Assembly
from rusteeze.quantize.results import Uniform
from rusteeze.weights import Dense

Array = np.ndarray
NAME = "model.gguf"
GROUP = 32
TYPES = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}
_FILE_TYPES = {4: LlamaFileType.MOSTLY_Q4_0, 8: LlamaFileType.MOSTLY_Q8_0}
_MADE_ANEW = (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE, Keys.General.ALIGNMENT)


def gguf_source(checkpoint: Checkpoint) -> GGUFCheckpoint:
    """The checkpoint, if it is a GGUF file. UserError for others: their metadata and tokenizer would need a
    converter's knowledge of every architecture."""
    if not isinstance(checkpoint, GGUFCheckpoint):
        raise UserError("a GGUF file is made of a GGUF file: convert the model to f16 with llama.cpp first")
    return checkpoint


def plain_gguf_bytes(checkpoint: GGUFCheckpoint, quantised: Set[str]) -> int:
    """Bytes of the tensors that are copied when these parameters get codes."""
    changed = {tensor for name in quantised for tensor in checkpoint.recipe(name).tensors}
    return sum(info.num_bytes for name, info in checkpoint.file.tensors.items() if name not in changed)


def write_gguf(folder: Path, assembly: Assembly, checkpoint: GGUFCheckpoint, bits: int) -> dict[str, Any]:
    """Write model.gguf into an empty folder; facts about it."""
    reader = GGUFReader(checkpoint.file.path)
    writer = GGUFWriter(folder / NAME, str(checkpoint.file.metadata[Keys.General.ARCHITECTURE]))
    _copy_metadata(reader, writer)
    writer.add_file_type(_FILE_TYPES[bits])
    param_of = {checkpoint.recipe(name).tensors[0]: name for name in sorted(assembly.quantised)}
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        shape: tuple[int, ...] = data.shape
        if tensor.name in param_of:
            kind = TYPES[bits]
            n, k = checkpoint.recipe(param_of[tensor.name]).shape
            shape = (n, k // GROUP * (2 + GROUP * bits // 8))
        dtype = np.dtype(np.uint8) if tensor.name in param_of else data.dtype
        nbytes = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(tensor.name, list(shape), dtype, nbytes, kind)
    _write(reader, writer, assembly, checkpoint, param_of)
    return {"bytes": (folder / NAME).stat().st_size, "matrices": len(param_of), "bits_per_weight": bits + 16 / GROUP}


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name in _MADE_ANEW or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def _write(
    reader: GGUFReader, writer: GGUFWriter, assembly: Assembly, checkpoint: GGUFCheckpoint, param_of: Mapping[str, str]
) -> None:  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        if tensor.name not in param_of:
            writer.write_tensor_data(tensor.data)
            continue
        codes = assembly.codes(param_of[tensor.name])
        assert isinstance(codes, Uniform)
        writer.write_tensor_data(blocks(codes)[_converted_rows(checkpoint, param_of[tensor.name])])
    writer.close()


def _converted_rows(checkpoint: GGUFCheckpoint, param: str) -> Array:
    """The row of the parameter that lies at each row of the file: the inverse of what reading does."""
    recipe = checkpoint.recipe(param)
    order = np.arange(recipe.shape[0])
    if recipe.change is None:
        return order
    moved = recipe.change.apply(Dense(order.astype(np.float32)[:, None], "f32"))
    return np.argsort(moved.to_f32()[:, 0])


def blocks(codes: Uniform) -> Array:
    """The bytes of the rows: uint8 [N, K / 32 * bytes of a block]."""
    n, groups = codes.scale.shape
    grouped = codes.codes.numpy().reshape(n, groups, GROUP)
    scale = codes.scale.to(torch.float16).numpy()[..., None].view(np.uint8)
    half = GROUP // 2
    packed = grouped[..., :half] | grouped[..., half:] << 4 if codes.bits == 4 else grouped ^ np.uint8(0x80)
    return np.concatenate([scale, packed], axis=2).reshape(n, -1)
