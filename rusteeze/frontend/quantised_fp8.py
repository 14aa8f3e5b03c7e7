"""FP8 as transformers stores it: "fp8" (blocks, or one scale for all) and "fbgemm_fp8" (a scale per row).

"fp8": ``NAME`` e4m3 [..., N, K] and ``NAME_scale_inv`` [..., N/128, K/128] with blocks as stated; multiply, in
spite of the name. "fbgemm_fp8": ``weight`` e4m3 [N, K] and ``weight_scale`` [N, 1]. Activations, which both
round to float8 when they run elsewhere, are ours to choose.
"""

from __future__ import annotations

import sys

from rusteeze.frontend.float8 import Float8Weight
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_parts import Parts, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight

WHOLE = sys.maxsize


def fp8_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The weights of method "fp8" by name. CheckpointError for what is not described above."""
    block = config.table.get("weight_block_size")
    if block is None:
        block = [WHOLE, WHOLE]
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        config.refuse(f"weight_block_size is {str(block)[:40]}", "quantise in blocks of 128 x 128")
    return {
        stem: Float8Weight(Parts(config, stored, stem), "", "_scale_inv", *block).stored()
        for stem in stems(stored, "_scale_inv")
    }


def fbgemm_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The weights of method "fbgemm_fp8" by name. CheckpointError for what is not described above."""
    return {
        f"{stem}.weight": Float8Weight(Parts(config, stored, stem), ".weight", ".weight_scale", 1, WHOLE).stored()
        for stem in stems(stored, ".weight_scale")
    }
