"""Codes of a few bits, packed into 32-bit words without gaps."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def unpack_fields(words: Array, bits: int, count: int) -> Array:
    """The first ``count`` fields of int32 [..., W], lowest bits first: uint8 [..., count].

    A field may begin in one word and end in the next."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data[..., :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        fields = data[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return fields.reshape(*data.shape[:-1], -1)[..., :count]
    flat = np.unpackbits(data, axis=-1, bitorder="little")[..., : count * bits]
    flat = flat.reshape(*flat.shape[:-1], count, bits)
    return np.packbits(flat, axis=-1, bitorder="little")[..., 0]


def words_for(count: int, bits: int) -> int:
    """How many words that many fields take."""
    return -(-count * bits // 32)
