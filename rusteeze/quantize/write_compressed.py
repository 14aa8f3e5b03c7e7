"""compressed-tensors: integers packed along the inputs ("pack-quantized"), and float8 ("float-quantized")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rusteeze.quantize.pack_fields import pack_fields
from rusteeze.quantize.results import Float8, Quantised
from rusteeze.quantize.writer import Facts

Tensor = torch.Tensor


@dataclass(frozen=True)
class CompressedWriter:
    """See rusteeze.quantize.writer.Writer. ``symmetric`` weights have no zero points in the file."""

    symmetric: bool

    def check(self, module: str, rows: int, columns: int, bits: int) -> None:
        """Anything fits."""

    def tensors(self, module: str, codes: Quantised) -> dict[str, Tensor]:
        if isinstance(codes, Float8):
            return {f"{module}.weight": codes.codes, f"{module}.weight_scale": codes.scale}
        found = {
            f"{module}.weight_packed": pack_fields(codes.codes, codes.bits),
            f"{module}.weight_scale": codes.scale,
            f"{module}.weight_shape": torch.tensor(codes.codes.shape),
        }
        if not self.symmetric:
            found[f"{module}.weight_zero_point"] = pack_fields(codes.zero.T, codes.bits).T.contiguous()
        return found

    def table(self, facts: Facts) -> dict[str, Any]:
        is_float = facts.options.method == "fp8"
        name = "float-quantized" if is_float else "pack-quantized"
        widths = {facts.common_bits: ["Linear"], **facts.others()}
        groups = {
            f"group_{i}": {
                "targets": targets, "format": name, "input_activations": None, "output_activations": None,
                "weights": _float8() if is_float else self._integers(facts, bits),
            }
            for i, (bits, targets) in enumerate(sorted(widths.items(), key=lambda item: item[1] == ["Linear"]))
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed",
            "config_groups": groups, "ignore": list(facts.left), "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }  # fmt: skip

    def _integers(self, facts: Facts, bits: int) -> dict[str, Any]:
        return _scheme(
            num_bits=bits, type="int", symmetric=self.symmetric, strategy="group", group_size=facts.options.group
        )


def _float8() -> dict[str, Any]:
    return _scheme(num_bits=8, type="float", symmetric=True, strategy="channel", group_size=None)


def _scheme(**stated: Any) -> dict[str, Any]:
    unused = {"dynamic": False, "actorder": None, "block_structure": None, "observer_kwargs": {}}
    return {**stated, **unused, "observer": "minmax"}
