"""MXFP4 as GPT-OSS stores its experts: 4-bit floats in blocks of 32 with a power of two each.

``NAME_blocks`` uint8 [E, N, K/32, 16], low nibble first, ``NAME_scales`` uint8 [E, N, K/32], the exponent + 127.
The parameter is [E, K, N]: transposed, for a product from the left. Its groups then run across rows, which no
family has; it becomes bf16, which holds every such number.
"""

from __future__ import annotations

import numpy as np

from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_parts import Parts, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Dense

Array = np.ndarray
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*_POSITIVE, *(-v for v in _POSITIVE)], np.float32)
BLOCK, BLOCK_BYTES = 32, 16
_LARGEST_EXPONENT = 252  # 6 * 2**(252 - 127) is still finite


def mxfp4_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The MXFP4 weights of a folder by name. CheckpointError for what is not described above."""
    return {stem: _mxfp4_weight(Parts(config, stored, stem)) for stem in stems(stored, "_blocks")}


def _mxfp4_weight(parts: Parts) -> StoredWeight:
    experts, n, num_blocks, size = parts.shape("_blocks", 4)
    if size != BLOCK_BYTES:
        parts.refuse(f"{parts.stem}_blocks has blocks of {size} bytes", "supported are blocks of 16")
    k = num_blocks * BLOCK

    def load() -> Dense:
        blocks = parts.read("_blocks", ["U8"])
        exponents = parts.read("_scales", ["U8"], (experts, n, num_blocks))
        if exponents.max() > _LARGEST_EXPONENT:
            parts.refuse(f"{parts.stem}_scales holds an exponent of {exponents.max()}, which is not finite")
        out = np.empty((experts, k, n), np.uint16)
        for expert in range(experts):
            out[expert] = _bf16(blocks[expert], exponents[expert]).T
        return Dense(out, "bf16")

    return parts.weight((experts, k, n), lambda: "bf16", load, "_blocks", "_scales")


def _bf16(blocks: Array, exponents: Array) -> Array:
    """Bits of one expert's numbers, [N, K]."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], BLOCK)
    numbers = np.ldexp(VALUES[codes], exponents[..., None].astype(np.int32) - 127)
    return Dense(numbers.reshape(len(blocks), -1), "f32").converted("bf16").values
