"""AWQ's "gemm" layout: codes of 4 bits packed along the outputs, eight to a word in a shuffled order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rusteeze.errors import UserError
from rusteeze.quantize.pack_fields import pack_fields
from rusteeze.quantize.results import Quantised, Uniform
from rusteeze.quantize.writer import Facts

Tensor = torch.Tensor
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight outputs lies in each nibble
PER_WORD = 8


@dataclass(frozen=True)
class AwqWriter:
    """See rusteeze.quantize.writer.Writer."""

    def check(self, module: str, rows: int, columns: int, bits: int) -> None:
        if rows % PER_WORD:
            raise UserError(f"{module} has {rows} rows: awq packs multiples of {PER_WORD}; use another --format")

    def tensors(self, module: str, codes: Quantised) -> dict[str, Tensor]:
        assert isinstance(codes, Uniform)
        return {
            f"{module}.qweight": _shuffled(codes.codes.T),
            f"{module}.qzeros": _shuffled(codes.zero.T),
            f"{module}.scales": codes.scale.T.contiguous(),
        }

    def table(self, facts: Facts) -> dict[str, Any]:
        return {
            "quant_method": "awq", "bits": 4, "group_size": facts.options.group, "zero_point": True,
            "version": "gemm", "modules_to_not_convert": list(facts.left) or None,
        }  # fmt: skip


def _shuffled(codes: Tensor) -> Tensor:
    """uint8 [rows, N] → int32 [rows, N / 8]."""
    words = codes.reshape(len(codes), -1, PER_WORD)[..., ORDER]
    return pack_fields(words.reshape(codes.shape), 4)
