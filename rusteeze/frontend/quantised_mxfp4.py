"""MXFP4 as GPT-OSS stores its experts: 4-bit floats in blocks of 32 with a power of two each.

``NAME_blocks`` uint8 [E, N, K/32, 16], low nibble first, ``NAME_scales`` uint8 [E, N, K/32], the exponent + 127.
The parameter is [E, K, N]: transposed, for a product from the left. Values are held doubled, as integers, and
scales halved, which loses nothing.
"""

from __future__ import annotations

import numpy as np

from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_parts import Parts, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Codebook, Format, Weight

Array = np.ndarray
_POSITIVE = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
VALUES = np.array([*_POSITIVE, *(-v for v in _POSITIVE)], np.float32)
BLOCK, BLOCK_BYTES = 32, 16
_LARGEST_EXPONENT = 252  # 12 * 2**(252 - 128) is still finite


def mxfp4_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The MXFP4 weights of a folder by name. CheckpointError for what is not described above."""
    return {stem: _mxfp4_weight(Parts(config, stored, stem)) for stem in stems(stored, "_blocks")}


def _mxfp4_weight(parts: Parts) -> StoredWeight:
    experts, n, num_blocks, size = parts.shape("_blocks", 4)
    if size != BLOCK_BYTES:
        parts.refuse(f"{parts.stem}_blocks has blocks of {size} bytes", "supported are blocks of 16")
    k = num_blocks * BLOCK

    def load() -> Weight:
        blocks = parts.read("_blocks", ["U8"])
        exponents = parts.read("_scales", ["U8"], (experts, n, num_blocks))
        if exponents.max() > _LARGEST_EXPONENT:
            parts.refuse(f"{parts.stem}_scales holds an exponent of {exponents.max()}, which is not finite")
        codes = np.empty((experts, n, num_blocks, BLOCK_BYTES, 2), np.uint8)
        np.bitwise_and(blocks, 15, out=codes[..., 0])
        np.right_shift(blocks, 4, out=codes[..., 1])
        scale = np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)
        return Codebook(BLOCK, codes.reshape(experts, n, k), VALUES, scale, transposed=True)

    format = str(Format("codebook", "f32", 4, BLOCK, integral=True, transposed=True))
    return parts.weight((experts, k, n), lambda: format, load, "_blocks", "_scales")
