"""Types of the IR: element types, named dimensions, tensor types.

A dimension is a positive int, or the name of one of the two quantities that are only known when a step
runs: ``T`` (tokens of the ragged batch) and ``R`` (rows whose logits are wanted). Rank and element
type are always static. Example: ``f32[T,9,64]``.
"""

from __future__ import annotations

import builtins
import enum
import re
from dataclasses import dataclass

import numpy as np

Dim = int | str
TOKENS = "T"
ROWS = "R"
SYMBOLS = (TOKENS, ROWS)


class DType(enum.Enum):
    """Element types. bf16 has no numpy counterpart: arrays of it are held as uint16 bit patterns."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    i8 = "i8"
    u8 = "u8"
    i32 = "i32"
    bool = "bool"

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(_NUMPY[self.value])

    @property
    def bytes(self) -> int:
        return self.numpy.itemsize

    @property
    def is_float(self) -> builtins.bool:
        return self in (DType.f32, DType.f16, DType.bf16)


_NUMPY = {
    "f32": "float32", "f16": "float16", "bf16": "uint16", "i8": "int8",
    "u8": "uint8", "i32": "int32", "bool": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value."""

    dtype: DType
    shape: tuple[Dim, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.value}[{','.join(map(str, self.shape))}]"

    def with_shape(self, *shape: Dim) -> TensorType:
        return TensorType(self.dtype, shape)


_TYPE = re.compile(r"([a-z]+\d*)\[([^\]]*)\]$")


def parse_type(text: str) -> TensorType:
    """Inverse of ``str(TensorType)``. ValueError when the text is not a type."""
    m = _TYPE.match(text.strip())
    if not m or m[1] not in DType.__members__:
        raise ValueError(f"not a tensor type: {text!r}")
    dims = [d.strip() for d in m[2].split(",")] if m[2].strip() else []
    return TensorType(DType(m[1]), tuple(int(d) if d.isdigit() else _symbol(d) for d in dims))


def _symbol(name: str) -> str:
    if name not in SYMBOLS:
        raise ValueError(f"unknown dimension {name!r}; named dimensions are {', '.join(SYMBOLS)}")
    return name


def broadcast_shapes(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """numpy's broadcasting rule, extended to named dimensions (a name only meets itself or 1)."""
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b
    out: list[Dim] = []
    for x, y in zip(a, b, strict=True):
        if x != y and 1 not in (x, y):
            raise TypeError(f"shapes {list(a)} and {list(b)} do not broadcast")
        out.append(y if x == 1 else x)
    return tuple(out)
