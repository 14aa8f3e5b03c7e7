"""What a file format is to the quantiser: codes of one matrix → the tensors of its module, and a table for
config.json. One file implements one format; readers in rusteeze.frontend are their mirror."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.results import Quantised

Tensor = torch.Tensor


@dataclass(frozen=True)
class Facts:
    """``bits`` by module (a tensor's name without .weight), and the modules whose matrices stay plain."""

    options: QuantizeOptions
    bits: Mapping[str, int]
    left: Sequence[str]

    @property
    def common_bits(self) -> int:
        """The width of most modules."""
        widths = list(self.bits.values())
        return max(sorted(set(widths)), key=widths.count)

    def others(self) -> dict[int, list[str]]:
        """Modules of other widths than the common one, by width."""
        found: dict[int, list[str]] = {}
        common = self.common_bits
        for name, bits in self.bits.items():
            if bits != common:
                found.setdefault(bits, []).append(name)
        return found


class Writer(Protocol):
    def check(self, module: str, rows: int, columns: int, bits: int) -> None:
        """UserError for a matrix that the format cannot hold."""

    def tensors(self, module: str, codes: Quantised) -> dict[str, Tensor]:
        """The tensors of a module, by their full names."""

    def table(self, facts: Facts) -> dict[str, Any]:
        """The quantization_config."""


def exactly(names: Sequence[str]) -> str:
    """A regular expression for these names."""
    return f"^({'|'.join(map(re.escape, names))})$"
