"""A quantised matrix: the numbers that a writer packs, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Uniform:
    """w = scale * (code - zero), for runs of columns that share both."""

    bits: int
    codes: Tensor  # uint8 [N, K]
    scale: Tensor  # f16 or bf16 [N, G]
    zero: Tensor  # uint8 [N, G], below 2**bits

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scale.shape[1]

    def to_f32(self) -> Tensor:
        """Exact, but for the rounding of scale * (code - zero), which f16 and bf16 scales do not need."""
        grouped = self.codes.view(*self.scale.shape, self.group).float() - self.zero[..., None].float()
        return (grouped * self.scale[..., None].float()).view(self.codes.shape)

    def rows(self, index: slice) -> Uniform:
        return replace(self, codes=self.codes[index], scale=self.scale[index], zero=self.zero[index])

    def scaled_rows(self, factor: Tensor) -> Uniform:
        """Each row times its factor, in the scales, which round."""
        return replace(self, scale=(self.scale.float() * factor[:, None]).to(self.scale.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scale": self.scale, "zero": self.zero}

    @property
    def num_bits(self) -> int:
        """Bits of codes, scales and zero points together."""
        return self.codes.numel() * self.bits + self.scale.numel() * (16 + self.bits)


@dataclass(frozen=True, eq=False)
class Float8:
    """w = scale * code, a scale for each row."""

    codes: Tensor  # float8_e4m3fn [N, K]
    scale: Tensor  # f32, f16 or bf16 [N, 1]

    bits = 8

    def to_f32(self) -> Tensor:
        return self.codes.float() * self.scale.float()

    def rows(self, index: slice) -> Float8:
        return Float8(self.codes[index], self.scale[index])

    def scaled_rows(self, factor: Tensor) -> Float8:
        return Float8(self.codes, (self.scale.float() * factor[:, None]).to(self.scale.dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scale": self.scale}

    @property
    def num_bits(self) -> int:
        return self.codes.numel() * 8 + self.scale.numel() * 16


Quantised = Uniform | Float8


def from_tensors(bits: int, tensors: dict[str, Tensor]) -> Quantised:
    """Inverse of ``tensors()``."""
    if "zero" in tensors:
        return Uniform(bits, tensors["codes"], tensors["scale"], tensors["zero"])
    return Float8(tensors["codes"], tensors["scale"])
