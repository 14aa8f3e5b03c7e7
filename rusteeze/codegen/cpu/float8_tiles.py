"""How float8 codes lie in a record: in the order that widens to bf16 pairs by interleaving.

A piece is 16 outputs times four inputs in 64 bytes. Every 16 bytes hold four outputs, first their inputs 0
and 1, then their inputs 2 and 3: interleaved with a second byte for each, the low eight bytes of every 16
become the four words of pairs (0, 1), the high eight those of pairs (2, 3).
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
PIECE = 4
"""Inputs of a piece; groups are a multiple of it."""


def pack_float8(records: Array) -> Array:
    """uint8 [..., bytes] of codes uint8 [..., 16 lanes, inputs]."""
    lead = records.shape[:-2]
    quads = records.reshape(*lead, 4, 4, records.shape[-1] // PIECE, 2, 2)  # quad, lane, piece, pair, input
    return np.ascontiguousarray(np.moveaxis(quads, (-3, -2), (-5, -3))).reshape(*lead, -1)


def unpack_float8(data: Array) -> Array:
    """Inverse of ``pack_float8``."""
    lead = data.shape[:-1]
    pieces = data.reshape(*lead, -1, 4, 2, 4, 2)  # piece, quad, pair, lane, input
    return np.ascontiguousarray(np.moveaxis(pieces, (-5, -3), (-3, -2))).reshape(*lead, 16, -1)
