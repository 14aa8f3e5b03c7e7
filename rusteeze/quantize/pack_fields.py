"""Codes of a few bits into 32-bit words without gaps; the inverse of rusteeze.frontend.bit_fields."""

from __future__ import annotations

import numpy as np
import torch

Tensor = torch.Tensor


def pack_fields(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] → int32 [..., W] with W the words that n fields take, lowest bits first."""
    array = np.ascontiguousarray(codes.numpy())
    flat = np.unpackbits(array[..., None], axis=-1, count=bits, bitorder="little")
    flat = flat.reshape(*array.shape[:-1], -1)
    padding = [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)]
    data = np.packbits(np.pad(flat, padding), axis=-1, bitorder="little")
    return torch.from_numpy(data.view("<i4").copy())
