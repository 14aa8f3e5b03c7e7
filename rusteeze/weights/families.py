"""The four ways in which a weight W[..., N, K] is held between a checkpoint and the kernels.

Readers decode every file format into one of these without losing a bit; packing and kernels know only
these. N counts outputs ("rows"), K inputs; axes in front of them stack equal weights (experts). Values
of several elements along K that share a scale form a *group*. Example::

    w = Affine(bits=4, group=32, codes=codes, scale=scale, zero=8)     # Q4_0
    w.format                                                           # "affine4g32s-f16"
    w.rows(slice(0, 64)).to_f32()                                      # float32 [64, K]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from rusteeze.weights.e4m3 import E4M3
from rusteeze.weights.formats import DENSE_DTYPES, SCALE_DTYPES, Format, dense_format

Array = np.ndarray
Index = int | slice | Array
Family = TypeVar("Family", bound="Weight")

_SCALE_NAMES = {np.dtype(v): k for k, v in SCALE_DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Dense:
    """A plain array, possibly a read-only view of a file. bf16 is held as uint16 bit patterns."""

    values: Array  # [..., N, K] or [N]
    dtype: str

    def __post_init__(self) -> None:
        dense_format(self.dtype)
        if self.values.dtype != np.dtype(DENSE_DTYPES[self.dtype]):
            raise ValueError(f"{self.dtype} is held as {DENSE_DTYPES[self.dtype]}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def layout(self) -> Format:
        return dense_format(self.dtype)

    @property
    def format(self) -> str:
        return self.dtype

    def to_f32(self) -> Array:
        """float32 copy; exact for every type but f64, i32 and i64."""
        if self.dtype == "bf16":
            return (self.values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return self.values.astype(np.float32)

    def converted(self, dtype: str) -> Dense:
        """The same numbers as "f32", "f16" or "bf16", rounded to nearest even where they do not fit."""
        if dtype == self.dtype:
            return self
        values = self.to_f32()
        if dtype == "bf16":
            bits = values.view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            return Dense(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), dtype)
        return Dense(values.astype(DENSE_DTYPES[dtype]), dtype)

    def rows(self, index: Index) -> Dense:
        """The rows of that index; elements of a one-dimensional weight."""
        return _each(self, _row_picker(self.values.ndim, index))

    def expert(self, index: Index) -> Dense:
        """The weight of that index along the first axis of a stack."""
        return _each(self, lambda a: a[index])

    def transpose(self) -> Dense:
        """The last two axes swapped; a view."""
        return _each(self, lambda a: a.swapaxes(-1, -2))


@dataclass(frozen=True, eq=False)
class Affine:
    """Integer codes on a straight line per group.

    w = scale * (code - zero) without ``minimum``, else w = scale * code + minimum. One code per byte,
    whatever ``bits`` says; packing them is the business of the kernels."""

    bits: int
    group: int
    codes: Array  # uint8 [..., N, K]
    scale: Array  # f16 or f32 [..., N, K/group]
    minimum: Array | None = None  # as scale
    zero: int = 0

    def __post_init__(self) -> None:
        _check_groups(self.codes, self.scale, self.group)
        if not 1 <= self.bits <= 8 or not 0 <= self.zero < 1 << self.bits:
            raise ValueError(f"{self.bits} bits with zero point {self.zero}")
        m = self.minimum
        if m is not None and (self.zero or m.shape != self.scale.shape or m.dtype != self.scale.dtype):
            raise ValueError("a minimum has the shape and type of the scales and excludes a zero point")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def layout(self) -> Format:
        symmetric = self.minimum is None
        name = _SCALE_NAMES[self.scale.dtype]
        return Format("affine", name, self.bits, self.group, symmetric, self.zero)

    @property
    def format(self) -> str:
        return str(self.layout)

    def to_f32(self) -> Array:
        """Computed in float32 in the order of the formula above."""
        grouped = _grouped(self.codes, self.group)
        if self.minimum is None:
            values = grouped.astype(np.float32) - np.float32(self.zero)
        else:
            values = grouped.astype(np.float32)
        values *= self.scale.astype(np.float32)[..., None]
        if self.minimum is not None:
            values += self.minimum.astype(np.float32)[..., None]
        return values.reshape(self.shape)

    def rows(self, index: Index) -> Affine:
        """The rows of that index."""
        return _each(self, _row_picker(self.codes.ndim, index))

    def expert(self, index: Index) -> Affine:
        """The weight of that index along the first axis of a stack."""
        return _each(self, lambda a: a[index])


@dataclass(frozen=True, eq=False)
class Codebook:
    """Four-bit codes into one table: w = scale * table[code]. A ``transposed`` weight is W[..., K, N]
    although its codes, and groups, are those of W[..., N, K]."""

    group: int
    codes: Array  # uint8 [..., N, K]
    table: Array  # f32 [16]
    scale: Array  # f16 or f32 [..., N, K/group]
    transposed: bool = False
    bits: int = 4

    def __post_init__(self) -> None:
        _check_groups(self.codes, self.scale, self.group)
        if self.bits != 4 or self.table.shape != (16,) or self.table.dtype != np.float32:
            raise ValueError("a codebook has 16 float32 values")

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, n, k = self.codes.shape
        return (*lead, k, n) if self.transposed else (*lead, n, k)

    @property
    def layout(self) -> Format:
        return Format(
            "codebook", _SCALE_NAMES[self.scale.dtype], self.bits, self.group,
            integral=is_integral(self.table), transposed=self.transposed,
        )  # fmt: skip

    @property
    def format(self) -> str:
        return str(self.layout)

    def to_f32(self) -> Array:
        values = self.table[_grouped(self.codes, self.group)]
        values *= self.scale.astype(np.float32)[..., None]
        values = values.reshape(self.codes.shape)
        return values.swapaxes(-1, -2) if self.transposed else values

    def rows(self, index: Index) -> Codebook:
        """The rows of that index. ValueError for a transposed weight, whose rows share groups."""
        if self.transposed:
            raise ValueError("rows of a transposed weight are not apart")
        return _each(self, _row_picker(self.codes.ndim, index))

    def expert(self, index: Index) -> Codebook:
        """The weight of that index along the first axis of a stack."""
        return _each(self, lambda a: a[index])

    def transpose(self) -> Codebook:
        """The last two axes swapped; nothing moves."""
        return replace(self, transposed=not self.transposed)


def is_integral(table: Array) -> bool:
    """Whether all values are integers that fit into int8."""
    return bool((table == np.rint(table).clip(-128, 127)).all())


@dataclass(frozen=True, eq=False)
class Float8:
    """Numbers of eight bits (e4m3, no infinities): w = scale * E4M3[code]."""

    group: int
    codes: Array  # uint8 [..., N, K]
    scale: Array  # f32 [..., N, K/group]

    def __post_init__(self) -> None:
        _check_groups(self.codes, self.scale, self.group)
        if self.scale.dtype != np.float32:
            raise ValueError(f"scales of float8 are f32, not {self.scale.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def layout(self) -> Format:
        return Format("float8", "f32", 8, self.group)

    @property
    def format(self) -> str:
        return str(self.layout)

    def to_f32(self) -> Array:
        values = E4M3[_grouped(self.codes, self.group)]
        values *= self.scale[..., None]
        return values.reshape(self.shape)

    def rows(self, index: Index) -> Float8:
        """The rows of that index."""
        return _each(self, _row_picker(self.codes.ndim, index))

    def expert(self, index: Index) -> Float8:
        """The weight of that index along the first axis of a stack."""
        return _each(self, lambda a: a[index])


Weight = Dense | Affine | Codebook | Float8


def concat_rows(parts: Sequence[Family]) -> Family:
    """The rows of all parts, in order. ValueError unless the parts are of one format."""
    if any(isinstance(p, Codebook) and p.transposed for p in parts):
        raise ValueError("cannot join the rows of transposed weights")
    axis = -2 if len(parts[0].shape) > 1 else 0
    return _join(parts, lambda arrays: np.concatenate(arrays, axis))


def stack(parts: Sequence[Family]) -> Family:
    """Equal weights along a new first axis. ValueError unless the parts are of one format."""
    return _join(parts, np.stack)


def with_leading_axes(weight: Family, shape: Sequence[int]) -> Family:
    """The same rows in another arrangement: W[*shape, K]."""
    return _each(weight, lambda a: a.reshape(*shape, a.shape[-1]))


def _join(parts: Sequence[Family], join: Callable[[Sequence[Array]], Array]) -> Family:
    first = parts[0]
    formats = {p.format for p in parts}
    if len(formats) > 1:
        raise ValueError(f"cannot join weights of formats {', '.join(sorted(formats))}")
    tables = [p.table for p in parts if isinstance(p, Codebook)]
    if any(not np.array_equal(table, tables[0]) for table in tables):
        raise ValueError("cannot join weights of different codebooks")
    columns = zip(*(_arrays(p).items() for p in parts), strict=True)
    joined: dict[str, Any] = {column[0][0]: join([a for _, a in column]) for column in columns}
    return replace(first, **joined)


_PER_ROW = ("values", "codes", "scale", "minimum")


def _arrays(weight: Weight) -> dict[str, Array]:
    """The arrays that have an entry per row, by field name."""
    fields = vars(weight)
    return {name: fields[name] for name in _PER_ROW if fields.get(name) is not None}


def _each(weight: Family, function: Callable[[Array], Array]) -> Family:
    changed: dict[str, Any] = {name: function(a) for name, a in _arrays(weight).items()}
    return replace(weight, **changed)


def _row_picker(rank: int, index: Index) -> Callable[[Array], Array]:
    if rank == 1:
        return lambda a: a[index]
    return lambda a: a[..., index, :]


def _grouped(codes: Array, group: int) -> Array:
    return codes.reshape(*codes.shape[:-1], codes.shape[-1] // group, group)


def _check_groups(codes: Array, scale: Array, group: int) -> None:
    if codes.dtype != np.uint8 or scale.dtype not in _SCALE_NAMES:
        raise ValueError(f"codes are uint8 and scales f16 or f32, not {codes.dtype}, {scale.dtype}")
    if group < 1 or codes.ndim < 1 or scale.shape != (*codes.shape[:-1], codes.shape[-1] // group):
        raise ValueError(f"codes {codes.shape} in groups of {group} need other scales than {scale.shape}")
    if codes.shape[-1] % group:
        raise ValueError(f"{codes.shape[-1]} columns are no multiple of the group {group}")
