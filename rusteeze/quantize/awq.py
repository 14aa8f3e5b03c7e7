"""AWQ (Lin et al. 2023): channels with large inputs are scaled up before rounding, and their producer scales
them down; then each group's range is clipped to where its outputs change least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from rusteeze.quantize.grid import GridSpec, group_moments, search_ranges
from rusteeze.quantize.method import Fold, Matrix, Site, SiteResult
from rusteeze.quantize.products import linear
from rusteeze.quantize.results import Quantised, Uniform
from rusteeze.quantize.rtn import round_to_nearest

Tensor = torch.Tensor
STEPS = 20
SMALLEST = 1e-4


@dataclass(frozen=True)
class Awq:
    """See rusteeze.quantize.method.Method."""

    reads_inputs: ClassVar[bool] = True
    follows_rounded: ClassVar[bool] = False

    def quantize(self, site: Site, spec: GridSpec) -> SiteResult:
        factors = best_factors(site, site.fold, spec) if site.fold else None
        codes: dict[str, Quantised] = {}
        notes: list[str] = []
        for matrices in site.by_inputs():
            for m in matrices:
                weight = m.weight if factors is None else m.weight * factors
                if m.inputs.are_enough:
                    codes[m.name] = _clipped(weight, _scaled_hessian(m, factors), spec)
                else:
                    codes[m.name] = round_to_nearest(weight, spec)
                    notes.append(f"{m.name} sees {m.inputs.tokens} tokens: rounded to nearest")
        return SiteResult(codes, factors, notes)


def best_factors(site: Site, fold: Fold, spec: GridSpec) -> Tensor | None:
    """Factors f32 [K] under which rounding to nearest changes the outputs of the site least; None: all one.
    Second moments are taken up once for each input."""
    seen = [matrices for matrices in site.by_inputs() if matrices[0].inputs.are_enough]
    if not seen:
        return None
    tried = [None, *_candidates([m for matrices in seen for m in matrices], fold)]
    errors = [0.0] * len(tried)
    for matrices in seen:
        for i, factors in enumerate(tried):
            errors[i] += sum(_error(m, factors, spec) for m in matrices)
    return tried[errors.index(min(errors))]


def _candidates(matrices: list[Matrix], fold: Fold) -> Iterator[Tensor]:
    """Powers of the inputs' magnitudes, as the fold allows them."""
    magnitude = torch.stack([m.inputs.magnitude for m in matrices]).mean(0)
    for step in range(1, STEPS):
        wanted = magnitude.clamp(min=SMALLEST) ** (step / STEPS)
        wanted = _tied(wanted / (wanted.max() * wanted.min()).sqrt(), fold.tie)
        yield fold.exact(wanted.clamp(min=SMALLEST))


def _error(m: Matrix, factors: Tensor | None, spec: GridSpec) -> float:
    """Mean squared change of the outputs, summed over them."""
    scaled = m.weight if factors is None else m.weight * factors
    groups = spec.grouped(scaled)
    change = (spec.round(groups, *spec.fit(groups)) - groups).reshape(scaled.shape)
    if factors is not None:
        change = change / factors
    return float((linear(change, m.inputs.hessian) * change).sum())


def _tied(factors: Tensor, tie: Tensor) -> Tensor:
    """The mean of tied channels, at each of them."""
    count = int(tie.max()) + 1
    sums = torch.zeros(count).index_add_(0, tie, factors)
    return (sums / torch.bincount(tie, minlength=count))[tie]


def _scaled_hessian(m: Matrix, factors: Tensor | None) -> Tensor:
    return m.inputs.hessian if factors is None else m.inputs.hessian / factors / factors[:, None]


def _clipped(weight: Tensor, hessian: Tensor, spec: GridSpec) -> Uniform:
    groups = spec.grouped(weight)
    scale, zero = search_ranges(spec, groups, group_moments(hessian, spec.group))
    return spec.pack(spec.codes(groups, scale, zero).reshape(weight.shape), scale, zero)
