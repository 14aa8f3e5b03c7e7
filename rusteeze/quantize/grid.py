"""The straight lines on which codes lie: scales and zero points for groups of numbers, and rounding to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rusteeze.quantize.results import Uniform

Tensor = torch.Tensor
SHRINKS = tuple(1 - 0.025 * i for i in range(20))  # shares of a group's range, the whole first


@dataclass(frozen=True)
class GridSpec:
    """Which lines are allowed. Scales are stored, and therefore rounded to, ``scale_dtype``."""

    bits: int
    group: int
    symmetric: bool
    scale_dtype: torch.dtype

    @property
    def last(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def fit(self, groups: Tensor, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Scale and zero point, as float32 [..., 1], for numbers f32 [..., g]; ``shrink`` f32 [..., 1] is the
        share of their range that is covered, the rest is clipped."""
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        low, high = low * shrink, high * shrink
        scale = ((high - low) / self.last).to(self.scale_dtype).float()
        scale = torch.where(scale > 0, scale, torch.ones(()))
        if self.symmetric:
            return scale, torch.full_like(scale, (self.last + 1) // 2)
        return scale, torch.round(-low / scale).clamp(0, self.last)

    def codes(self, numbers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest codes, as float32."""
        return (torch.round(numbers / scale) + zero).clamp(0, self.last)

    def round(self, numbers: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest numbers on the lines."""
        return scale * (self.codes(numbers, scale, zero) - zero)

    def grouped(self, weight: Tensor) -> Tensor:
        """[N, K] as [N, G, g]."""
        return weight.reshape(len(weight), -1, self.group)

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor) -> Uniform:
        """Codes f32 [N, K] with scale and zero f32 [N, G, 1]."""
        return Uniform(
            self.bits, codes.to(torch.uint8), scale[..., 0].to(self.scale_dtype), zero[..., 0].to(torch.uint8)
        )


def search_ranges(spec: GridSpec, groups: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero f32 [N, G, 1] for groups f32 [N, G, g]: of the ranges in SHRINKS, the one whose rounding
    changes a group's share of the outputs least. ``moments`` [G, g, g] are the second moments of its inputs."""
    scale, zero = spec.fit(groups)
    least = _output_error(spec.round(groups, scale, zero) - groups, moments)
    for shrink in SHRINKS[1:]:
        tried = spec.fit(groups, shrink)
        error = _output_error(spec.round(groups, *tried) - groups, moments)
        better = (error < least)[..., None]
        least = torch.minimum(least, error)
        scale, zero = (torch.where(better, new, old) for new, old in zip(tried, (scale, zero), strict=True))
    return scale, zero


def _output_error(change: Tensor, moments: Tensor) -> Tensor:
    """change' M change for each row and group: [N, G]."""
    by_group = change.transpose(0, 1)  # [G, N, g]
    return ((by_group @ moments) * by_group).sum(-1).T


def group_moments(hessian: Tensor, group: int) -> Tensor:
    """The blocks [G, g, g] on the diagonal of [K, K]."""
    count = len(hessian) // group
    blocks = hessian.reshape(count, group, count, group)
    return torch.stack([blocks[i, :, i] for i in range(count)])
