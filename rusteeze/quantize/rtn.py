"""Rounding to nearest, on lines that span each group. Looks at no text; what other methods must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.method import Site, SiteResult
from rusteeze.quantize.results import Uniform


@dataclass(frozen=True)
class Rtn:
    """See rusteeze.quantize.method.Method."""

    reads_inputs: ClassVar[bool] = False
    follows_rounded: ClassVar[bool] = False

    def quantize(self, site: Site, spec: GridSpec) -> SiteResult:
        return SiteResult({m.name: round_to_nearest(m.weight, spec) for m in site.matrices})


def round_to_nearest(weight: torch.Tensor, spec: GridSpec) -> Uniform:
    """The nearest codes for f32 [N, K]."""
    groups = spec.grouped(weight)
    scale, zero = spec.fit(groups)
    return spec.pack(spec.codes(groups, scale, zero).reshape(weight.shape), scale, zero)
