"""The straight lines on which the codes of an integer format lie: w = scale * (code - zero).

Formats give every column of W[N, K] to some group; kernels want groups of equal size that are runs of
columns. Where the runs are there, the weight stays what it is: Affine, with a zero point for all or a
minimum per group. Where they are not (act-order), or where scale * zero would round, it becomes plain
float32, which holds every product of a code and an f16 or bf16 scale exactly; or, for those who can put the
activations in another order, the same codes with their columns sorted by group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rusteeze.frontend.stored_weight import SortedColumns
from rusteeze.weights import Affine, Dense, Format, Weight, dense_format

Array = np.ndarray
_RUNS = (128, 64, 32, 16)  # the groups that kernels of rounded activations take
_ROWS_AT_ONCE = 1 << 24  # elements


@dataclass(frozen=True, eq=False)
class Grid:
    """``scale`` and ``zero`` of each row and group; ``column_group`` says in which group a column is."""

    bits: int
    scale: Array  # f16 or f32 [N, G]
    zero: int | Array  # int32 [N, G]
    column_group: Array  # [K], values below G

    @property
    def layout(self) -> Format:
        """The format of ``weight``."""
        run, zero = longest_run(self.column_group), self._zero()
        if not run or (zero is None and not self._is_exact()):
            return dense_format("f32")
        if zero is None:
            return Format("affine", "f32", self.bits, run)
        return Format("affine", "f16" if self.scale.dtype == np.float16 else "f32", self.bits, run, True, zero)

    def weight(self, codes: Array) -> Weight:
        """The weight of codes uint8 [N, K]."""
        layout = self.layout
        if layout.family == "dense":
            return Dense(self._plain(codes), "f32")
        groups = self.column_group[:: layout.group]
        scale = np.ascontiguousarray(self.scale[:, groups])
        codes = np.ascontiguousarray(codes)
        if layout.symmetric:
            return Affine(self.bits, layout.group, codes, scale, zero=layout.zero)
        scale = scale.astype(np.float32)
        zero = self.zero if isinstance(self.zero, int) else self.zero[:, groups]
        return Affine(self.bits, layout.group, codes, scale, -(scale * zero).astype(np.float32))

    def sorted_columns(self, codes: Callable[[], Array]) -> SortedColumns | None:
        """The weight of ``codes()`` with its columns sorted by group, if they are not runs and would be then."""
        if longest_run(self.column_group):
            return None
        columns = np.argsort(self.column_group, kind="stable").astype(np.int32)
        grid = replace(self, column_group=self.column_group[columns])
        layout = grid.layout
        if layout.family == "dense":
            return None
        return SortedColumns(columns, str(layout), lambda: grid.weight(codes()[:, columns]))

    def _zero(self) -> int | None:
        """The zero point of the whole weight, if it has one that is a code."""
        first = self.zero if isinstance(self.zero, int) else int(self.zero.flat[0])
        same = isinstance(self.zero, int) or bool((self.zero == first).all())
        return first if same and 0 <= first < 1 << self.bits else None

    def _is_exact(self) -> bool:
        """Whether scale * code and scale * zero fit into float32, so that their sum does not depend on
        the order: 15 bits of the scale and up to 9 of a code."""
        scale = np.ascontiguousarray(self.scale, np.float32)
        tiny = (scale != 0) & (np.abs(scale) < 2.0**-110)
        return not (scale.view(np.uint32) & 0x1FF).any() and not tiny.any() and np.abs(scale).max() < 2.0**110

    def _plain(self, codes: Array) -> Array:
        n, k = codes.shape
        out = np.empty((n, k), np.float32)
        step = max(1, _ROWS_AT_ONCE // k)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            zero = self.zero if isinstance(self.zero, int) else self.zero[rows][:, self.column_group]
            np.subtract(codes[rows], zero, out=out[rows], dtype=np.float32, casting="unsafe")
            out[rows] *= self.scale[rows].astype(np.float32)[:, self.column_group]
        return out


def longest_run(column_group: Array) -> int:
    """The longest run of columns that share a group everywhere; 0 if there is none worth having."""
    for run in _RUNS:
        if len(column_group) % run == 0:
            runs = column_group.reshape(-1, run)
            if (runs == runs[:, :1]).all():
                return run
    return 0
