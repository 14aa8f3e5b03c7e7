"""AWQ in its "gemm" layout: codes of 4 bits, packed along the outputs in a shuffled order.

W[N, K] is stored as ``qweight`` int32 [K, N/8], ``qzeros`` int32 [G, N/8] and ``scales`` [G, N];
w = scale * (code - zero). Of eight neighbouring outputs, output i is in nibble ORDER[i] of their word.
"""

from __future__ import annotations

import numpy as np

from rusteeze.frontend.bit_fields import unpack_fields
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_grid import Grid
from rusteeze.frontend.quantised_parts import Parts, regular_groups, stems
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight
from rusteeze.weights import Weight

Array = np.ndarray
BITS = 4
PER_WORD = 32 // BITS
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def awq_weights(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    """The AWQ weights of a folder by name. CheckpointError for what is not described above."""
    layout = config.table.get("version") or config.table.get("format") or "gemm"
    if str(layout).lower() != "gemm":
        config.refuse(f"the layout {str(layout)[:20]!r} is not supported", "pack it as gemm")
    bits = config.table.get("bits", config.table.get("w_bit", BITS))
    if bits != BITS:
        config.refuse(f"{str(bits)[:12]} bits are not supported", "quantise to 4 bits")
    return {f"{s}.weight": _AwqWeight(Parts(config, stored, s)).stored() for s in stems(stored, ".qweight")}


class _AwqWeight:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.k, self.words = parts.shape(".qweight", 2)
        self.groups, self.n = parts.shape(".qzeros", 2)[0], self.words * PER_WORD

    def stored(self) -> StoredWeight:
        return self.parts.weight(
            (self.n, self.k), lambda: str(self.grid().layout), self.load, ".qweight", ".qzeros", ".scales"
        )

    def load(self) -> Weight:
        return self.grid().weight(self._fields(".qweight", self.k).T)

    def grid(self) -> Grid:
        scale = self.parts.scales(".scales", (self.groups, self.n))
        zero = self._fields(".qzeros", self.groups).astype(np.int32)
        return Grid(BITS, scale.T, zero.T, regular_groups(self.parts, self.k, self.groups))

    def _fields(self, suffix: str, rows: int) -> Array:
        """Codes or zero points uint8 [rows, N]."""
        fields = unpack_fields(self.parts.read(suffix, ["I32"], (rows, self.words)), BITS, self.n)
        return fields.reshape(rows, self.words, PER_WORD)[..., ORDER].reshape(rows, self.n)
