"""GPTQ (Frantar et al. 2022): columns are rounded one after the other, and those that are left make up for it.

With act-order the columns that matter most come first. Lines belong to runs of columns all the same
("static groups"), so that the result needs no index of groups and keeps its codes in every engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rusteeze.quantize.grid import GridSpec, group_moments, search_ranges
from rusteeze.quantize.method import Matrix, Site, SiteResult, stacked, unstacked
from rusteeze.quantize.results import Quantised, Uniform
from rusteeze.quantize.rtn import round_to_nearest

Tensor = torch.Tensor
DAMPING = 0.01  # of the mean diagonal, as the reference does
OUT_OF_REACH = 1e30  # a step too long for what other columns pass on: groups of zeros stay zero
BLOCK = 128  # columns after which what is left is corrected at once


@dataclass(frozen=True)
class Gptq:
    """See rusteeze.quantize.method.Method."""

    act_order: bool = True
    reads_inputs: ClassVar[bool] = True
    follows_rounded: ClassVar[bool] = True

    def quantize(self, site: Site, spec: GridSpec) -> SiteResult:
        codes: dict[str, Quantised] = {}
        notes: list[str] = []
        for matrices in site.by_inputs():
            if matrices[0].inputs.are_enough:
                codes |= unstacked(matrices, self._solve(matrices, spec))
            else:
                codes |= {m.name: round_to_nearest(m.weight, spec) for m in matrices}
                notes += [f"{m.name} sees {m.inputs.tokens} tokens: rounded to nearest" for m in matrices]
        return SiteResult(codes, notes=notes)

    def _solve(self, matrices: list[Matrix], spec: GridSpec) -> Uniform:
        return solve(stacked(matrices), matrices[0].inputs.hessian, spec, act_order=self.act_order)


def solve(weight: Tensor, hessian: Tensor, spec: GridSpec, *, act_order: bool) -> Uniform:
    """Codes for W f32 [N, K] whose inputs have the second moments ``hessian`` f32 [K, K]."""
    own = hessian.diagonal()
    diagonal = torch.where(own == 0, own.mean().clamp(min=1e-30), own)  # no input there: any code will do
    groups, moments = spec.grouped(weight), group_moments(hessian, spec.group)
    moments.diagonal(dim1=1, dim2=2).copy_(diagonal.view(-1, spec.group))
    scale, zero = search_ranges(spec, groups, moments)
    order = diagonal.argsort(descending=True) if act_order else torch.arange(len(hessian))
    inverse = _inverse_factor(hessian, diagonal, order)
    group_of = order // spec.group
    steps = torch.where(groups.any(-1, keepdim=True), scale, OUT_OF_REACH)
    codes = torch.empty_like(weight)
    codes[:, order] = _round_in_order(weight[:, order], inverse, steps[..., 0], zero[..., 0], group_of, spec)
    return spec.pack(codes, scale, zero)


def _inverse_factor(hessian: Tensor, diagonal: Tensor, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of second moments with another diagonal, columns in this order, with as much
    damping as that takes. No more than two matrices are held beside ``hessian``: what cannot be factorised is made anew."""
    diagonal, damping = diagonal[order], 0.0
    while True:
        matrix = hessian[order[:, None], order]
        matrix.diagonal().copy_(diagonal)
        damping = 10 * damping or DAMPING * float(matrix.diagonal().mean())
        diagonal = matrix.diagonal().add_(damping).clone()
        matrix, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            matrix = torch.cholesky_inverse(matrix)
            matrix, failed = torch.linalg.cholesky_ex(matrix, upper=True)
            if not failed:
                return matrix


def _round_in_order(
    weight: Tensor, inverse: Tensor, scale: Tensor, zero: Tensor, group_of: Tensor, spec: GridSpec
) -> Tensor:  # fmt: skip
    """Codes f32 [N, K] of columns in the order in which they come. The columns lie in rows here."""
    left = weight.T.contiguous()
    scales, zeros = scale.T[group_of], zero.T[group_of]
    codes = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        factor = inverse[start:stop, start:stop]
        block, errors = left[start:stop], torch.empty_like(left[start:stop])
        for i in range(stop - start):
            at = start + i
            codes[at] = spec.codes(block[i], scales[at], zeros[at])
            errors[i] = (block[i] - scales[at] * (codes[at] - zeros[at])) / factor[i, i]
            block[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        left[stop:].addmm_(inverse[start:stop, stop:].T, errors, alpha=-1)
    return codes.T
