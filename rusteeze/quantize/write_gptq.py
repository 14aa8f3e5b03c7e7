"""GPTQ's layout: codes packed along the inputs, zero points along the outputs.

Symmetric weights are written as the first version, which stores zero - 1 and which everything reads; others
as the second ("gptq_v2"), since the first has no unambiguous zero point 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rusteeze.errors import UserError
from rusteeze.quantize.gptq import DAMPING
from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.pack_fields import pack_fields
from rusteeze.quantize.results import Quantised, Uniform
from rusteeze.quantize.writer import Facts, exactly

Tensor = torch.Tensor


@dataclass(frozen=True)
class GptqWriter:
    """See rusteeze.quantize.writer.Writer."""

    options: QuantizeOptions

    def check(self, module: str, rows: int, columns: int, bits: int) -> None:
        if rows * bits % 32 or columns * bits % 32:
            raise UserError(
                f"{module} is {rows} x {columns}: gptq packs {bits} bits in whole words; use --format compressed-tensors"
            )

    def tensors(self, module: str, codes: Quantised) -> dict[str, Tensor]:
        assert isinstance(codes, Uniform)
        k = codes.codes.shape[1]
        zero = codes.zero - 1 if self.options.symmetric else codes.zero
        return {
            f"{module}.qweight": pack_fields(codes.codes, codes.bits).T.contiguous(),
            f"{module}.qzeros": pack_fields(zero.T, codes.bits),
            f"{module}.scales": codes.scale.T.contiguous(),
            f"{module}.g_idx": (torch.arange(k) // codes.group).int(),
        }  # fmt: skip

    def table(self, facts: Facts) -> dict[str, Any]:
        """Modules that stay plain, or have another width, are named as gptqmodel names them ("dynamic")."""
        options = facts.options
        dynamic: dict[str, dict[str, int]] = {f"-:{exactly([name])}": {} for name in facts.left}
        dynamic |= {f"+:{exactly(names)}": {"bits": bits} for bits, names in facts.others().items()}
        return {
            "quant_method": "gptq", "bits": facts.common_bits, "group_size": options.group, "desc_act": False,
            "static_groups": options.orders_columns, "sym": options.symmetric, "damp_percent": DAMPING,
            "true_sequential": True, "lm_head": False, "pack_dtype": "int32",
            "checkpoint_format": "gptq" if options.symmetric else "gptq_v2", "dynamic": dynamic,
        }  # fmt: skip
