"""Where the values of a graph live: storages, and strided views of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rusteeze.codegen.access import Access
from rusteeze.ir import Dim, TensorType

Space = Literal["T", "R", ""]


@dataclass(eq=False)
class Storage:
    """Memory of one value (and of its views).

    kind "buffer": scratch with a row per token or logits row; "weight": in the artifact; "input": given
    by the step."""

    kind: Literal["buffer", "weight", "input"]
    name: str
    space: Space = ""
    row_bytes: int = 0


@dataclass(frozen=True)
class View:
    """Elements of a storage; ``offset`` counts elements from the storage's (or row's) beginning."""

    storage: Storage
    access: Access
    offset: int = 0

    @property
    def element_bytes(self) -> int:
        return 2 if self.access.dtype in ("f16", "bf16") else 4

    def moved(self, access: Access, offset: int = 0) -> View:
        return View(self.storage, access, self.offset + offset)


@dataclass(frozen=True)
class RoundedView:
    """Rows rounded for matmuls; ``kind`` and arrays as in rusteeze.codegen.cpu.activations."""

    kind: str
    storages: tuple[Storage, ...]
    columns: int


def space_of(t: TensorType) -> Space:
    """"T" or "R" when the leading axis is one of these, "" when the shape is static."""
    lead = t.shape[0] if t.shape else 0
    return lead if lead in ("T", "R") else ""  # type: ignore[return-value]


def inner_shape(t: TensorType) -> tuple[int, ...]:
    """The axes behind the row axis (all axes of a static type)."""
    dims: tuple[Dim, ...] = t.shape[1:] if space_of(t) else t.shape
    out = tuple(d for d in dims if isinstance(d, int))
    if len(out) != len(dims):
        raise TypeError(f"{t} has a named dimension that does not lead")
    return out


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for d in reversed(shape):
        strides.insert(0, step)
        step *= d
    return tuple(strides)


@dataclass
class Arena:
    """Makes scratch storages."""

    buffers: list[Storage] = field(default_factory=list)

    def new(self, space: Space, row_bytes: int, name: str) -> Storage:
        """Rows padded to 64 bytes, so that whole vectors may be stored at their end."""
        return self.exact(space, -(-max(row_bytes, 1) // 64) * 64, name)

    def exact(self, space: Space, row_bytes: int, name: str) -> Storage:
        """Rows that follow each other without padding."""
        storage = Storage("buffer", name, space, row_bytes)
        self.buffers.append(storage)
        return storage
