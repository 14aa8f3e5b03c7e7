"""How a kernel addresses an operand: element strides per row (token) and per inner axis.

Where the operand begins is the plan's business; a kernel only depends on strides, so that layers share
kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """``row`` is 0 for what does not depend on the token; a stride of 0 repeats along that axis."""

    dtype: str  # IR element type
    row: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        step = 1
        for d, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if d != 1 and s != step:
                return False
            step *= d
        return True

    def aligned_to(self, shape: Sequence[int]) -> Access:
        """The same operand as seen from a result of ``shape`` (numpy's broadcasting)."""
        pad = len(shape) - len(self.shape)
        dims = (1,) * pad + self.shape
        steps = (0,) * pad + self.strides
        strides = tuple(0 if d == 1 else s for d, s in zip(dims, steps, strict=True))
        return Access(self.dtype, self.row, tuple(shape), strides)

    def key(self) -> str:
        return f"{self.dtype}:{self.row}:{self.shape}:{self.strides}"
