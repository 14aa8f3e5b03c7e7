"""GPTQ: codes of 2, 3, 4 or 8 bits, packed along the inputs.

W[N, K] is stored as ``qweight`` int32 [K * bits / 32, N], ``qzeros`` int32 [G, N * bits / 32], ``scales`` [G, N]
and ``g_idx`` int32 [K], the group of each column; w = scale * (code - zero). Files of the first version
store zero - 1, so that their zero points are 1 .. 2**bits; "gptq_v2" stores them as they are. With
act-order (desc_act) columns of a group do not lie side by side: see quantised_grid.
"""

from __future__ import annotations

import numpy as np

from rusteeze.frontend.bit_fields import unpack_fields, words_for
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_grid import Grid
from rusteeze.frontend.quantised_parts import Parts, regular_groups, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Weight

Array = np.ndarray
BITS = (2, 3, 4, 8)
_ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}


def gptq_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The GPTQ weights of a folder by name. CheckpointError for what is not described above."""
    table = config.table
    version = table.get("checkpoint_format") or table.get("format") or "gptq"
    if table.get("is_marlin_format"):
        version = "marlin"
    if not isinstance(version, str) or version not in _ZERO_OFFSET:
        config.refuse(f"the packing {str(version)[:20]!r} is not supported", "pack it as gptq or gptq_v2")
    offset = _ZERO_OFFSET[version]
    return {
        f"{stem}.weight": _GptqWeight(Parts(config, stored, stem), offset).stored()
        for stem in stems(stored, ".qweight")
    }


class _GptqWeight:
    """One weight: its sizes follow from the shapes of its tensors alone."""

    def __init__(self, parts: Parts, zero_offset: int) -> None:
        self.parts, self.zero_offset = parts, zero_offset
        words, self.n = parts.shape(".qweight", 2)
        self.groups, zero_words = parts.shape(".qzeros", 2)
        bits = next((b for b in BITS if zero_words == words_for(self.n, b)), None)
        if bits is None or self.n * bits % 32 or words * 32 % bits:
            stated = parts.config.table.get("bits")
            parts.refuse(
                f"{parts.stem}.qweight {[words, self.n]} with qzeros {[self.groups, zero_words]} holds"
                f" no codes of 2, 3, 4 or 8 bits (stated: {str(stated)[:12]})",
                "quantise to 4 bits, with a multiple of 32 outputs",
            )
        self.bits, self.k = bits, words * 32 // bits

    def stored(self) -> StoredWeight:
        return self.parts.weight(
            (self.n, self.k), lambda: str(self.grid().layout), self.load,
            ".qweight", ".qzeros", ".scales", ".g_idx",
            find_sorted=lambda: self.grid().sorted_columns(self.codes),
        )  # fmt: skip

    def load(self) -> Weight:
        return self.grid().weight(self.codes())

    def codes(self) -> Array:
        return unpack_fields(self.parts.read(".qweight", ["I32"]).T, self.bits, self.k)

    def grid(self) -> Grid:
        scale = self.parts.scales(".scales", (self.groups, self.n))
        fields = unpack_fields(self.parts.read(".qzeros", ["I32"]), self.bits, self.n)
        zero = fields.astype(np.int32) + self.zero_offset
        return Grid(self.bits, scale.T, zero.T, self.column_group())

    def column_group(self) -> Array:
        if ".g_idx" in self.parts:
            index = self.parts.read(".g_idx", ["I32"], (self.k,))
            if index.min() < 0 or index.max() >= self.groups:
                self.parts.refuse(f"{self.parts.stem}.g_idx names groups outside of the {self.groups} stored")
            return index
        if self.parts.config.table.get("desc_act"):
            self.parts.refuse(f"{self.parts.stem}.g_idx is missing, without which act-order is unknown")
        return regular_groups(self.parts, self.k, self.groups)
