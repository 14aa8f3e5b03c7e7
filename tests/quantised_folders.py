"""Model folders with quantised weights, and beside each the same numbers stored plainly.

A packer turns W[N, K] into the tensors of a format, by the suffixes of their names, and the numbers that these
stand for. Bits are packed here one field at a time, as formats describe it, not as the readers undo it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

Array = np.ndarray
Packed = tuple[dict[str, torch.Tensor], Array]
Packer = Callable[[Array], Packed]
KEPT = ("embed_tokens.weight", "lm_head.weight", "gate.weight", "norm.weight")


def pack_fields(codes: Array, bits: int) -> torch.Tensor:
    """int32 words of codes along the last axis, lowest bits first, fields across words."""
    count = codes.shape[-1]
    words = np.zeros((*codes.shape[:-1], -(-count * bits // 32) + 1), np.uint64)
    for i in range(count):
        word, shift = divmod(i * bits, 32)
        field = codes[..., i].astype(np.uint64) << np.uint64(shift)
        words[..., word] |= field & np.uint64(0xFFFFFFFF)
        words[..., word + 1] |= field >> np.uint64(32)
    return torch.from_numpy(words[..., :-1].astype(np.uint32).view(np.int32).copy())


def uniform(weight: Array, column_group: Array, bits: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """Scales (f16 numbers) and zero points [N, G] and codes [N, K] near a weight; asymmetric zeros vary."""
    groups = int(column_group.max()) + 1
    rng = np.random.default_rng(len(weight))
    zero = np.full((len(weight), groups), 1 << (bits - 1))
    if not symmetric:
        zero = rng.integers(1, 1 << bits, zero.shape)
    scale = (rng.uniform(0.7, 1.3, zero.shape) * 2 / (1 << bits)).astype(np.float16).astype(np.float32)
    codes = np.round(weight / scale[:, column_group]) + zero[:, column_group]
    return scale, zero, np.clip(codes, 0, (1 << bits) - 1).astype(np.int64)


def save_quantised(
    model: PreTrainedModel, folder: Path, table: Mapping[str, Any], pack: Packer, kept: tuple[str, ...] = KEPT
) -> Path:
    """Save a model below ``folder``/quantised with its matrices packed, and plainly below the folder
    returned. ``table`` becomes the quantization_config."""
    quantised, plain = folder / "quantised", folder / "plain"
    for place in (quantised, plain):
        model.save_pretrained(place)
    tensors = load_file(plain / "model.safetensors")
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and not name.endswith(kept):
            parts, numbers = pack(stored.pop(name).float().numpy())
            stem = name.removesuffix(".weight")
            stored |= {stem + suffix: t.contiguous() for suffix, t in parts.items()}
            tensors[name] = torch.from_numpy(numbers)
    save_file(stored, quantised / "model.safetensors")
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": dict(table)}))
    return plain


def gptq_packer(bits: int, group: int, *, symmetric: bool, act_order: bool, version: int = 1) -> Packer:
    """The layout of auto-gptq."""

    def pack(weight: Array) -> Packed:
        n, k = weight.shape
        index = np.arange(k) // group
        if act_order:
            index = np.random.default_rng(k).permutation(index)
        scale, zero, codes = uniform(weight, index, bits, symmetric)
        numbers = (codes - zero[:, index]).astype(np.float32) * scale[:, index]
        return {
            ".qweight": pack_fields(codes, bits).T,
            ".qzeros": pack_fields((zero - (version == 1)).T, bits),
            ".scales": torch.from_numpy(scale.T.copy()).half(),
            ".g_idx": torch.from_numpy(index.astype(np.int32)),
        }, numbers

    return pack
