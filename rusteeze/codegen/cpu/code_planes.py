"""Codes of 1 to 8 bits as planes of 8, 4, 2 and 1 bits, so that shifts and masks give whole bytes of them.

Codes are read in *pieces*: vectors of 16 words (one a lane, that is an output) of four bytes (inputs that
follow each other). A plane of p bits holds 8/p pieces in one vector of 64 bytes, the first in the lowest p
bits of each byte. A code of 6 bits is its low four bits in one plane and its high two in the next; 5 = 4 + 1,
3 = 2 + 1, 7 = 4 + 2 + 1. The planes of a record lie one behind the other, the widest first.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
LANES, PIECE = 16, 4
VECTOR_BYTES = LANES * PIECE


def planes_of(bits: int) -> tuple[int, ...]:
    """The widths of the planes of a code, which are also its significances: the widest holds its lowest bits."""
    return tuple(p for p in (8, 4, 2, 1) if bits & p)


def fewest_inputs(bits: int) -> int:
    """How many inputs fill whole vectors of every plane."""
    return PIECE * 8 // min(planes_of(bits))


def plane_bytes(width: int, inputs: int) -> int:
    return LANES * inputs * width // 8


def pack_planes(codes: Array, bits: int) -> Array:
    """uint8 [..., bytes] of codes uint8 [..., 16 lanes, inputs]."""
    inputs = codes.shape[-1]
    lead = codes.shape[:-2]
    parts, low = [], 0
    for width in planes_of(bits):
        field = codes >> np.uint8(low) & np.uint8((1 << width) - 1)
        per_vector = 8 // width
        pieces = field.reshape(*lead, LANES, inputs // (PIECE * per_vector), per_vector, PIECE)
        vectors = np.zeros((*pieces.shape[:-2], PIECE), np.uint8)
        for q in range(per_vector):
            vectors |= pieces[..., q, :] << np.uint8(q * width)
        parts.append(np.swapaxes(vectors, -3, -2).reshape(*lead, -1))
        low += width
    return np.concatenate(parts, -1)


def unpack_planes(data: Array, bits: int, inputs: int) -> Array:
    """Inverse of ``pack_planes``."""
    lead = data.shape[:-1]
    codes = np.zeros((*lead, LANES, inputs), np.uint8)
    low = at = 0
    for width in planes_of(bits):
        size = plane_bytes(width, inputs)
        vectors = data[..., at : at + size].reshape(*lead, -1, LANES, PIECE)
        mask = np.uint8((1 << width) - 1)
        pieces = np.stack([vectors >> np.uint8(q * width) & mask for q in range(8 // width)], -2)
        codes |= np.moveaxis(pieces, -3, -4).reshape(codes.shape) << np.uint8(low)
        low, at = low + width, at + size
    return codes
