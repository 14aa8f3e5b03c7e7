"""Float8 (e4m3) with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.method import Site, SiteResult
from rusteeze.quantize.results import Float8

LARGEST = 448.0


@dataclass(frozen=True)
class Fp8:
    """See rusteeze.quantize.method.Method. Of the grid only the type of the scales counts."""

    reads_inputs: ClassVar[bool] = False
    follows_rounded: ClassVar[bool] = False

    def quantize(self, site: Site, spec: GridSpec) -> SiteResult:
        return SiteResult({m.name: to_float8(m.weight, spec.scale_dtype) for m in site.matrices})


def to_float8(weight: torch.Tensor, scale_dtype: torch.dtype) -> Float8:
    """The nearest codes for f32 [N, K]; the largest number of a row becomes the largest code."""
    scale = (weight.abs().amax(1, keepdim=True) / LARGEST).to(scale_dtype)
    scale = torch.where(scale > 0, scale, torch.ones((), dtype=scale_dtype))
    codes = (weight / scale.float()).clamp(-LARGEST, LARGEST)
    return Float8(codes.to(torch.float8_e4m3fn), scale)
