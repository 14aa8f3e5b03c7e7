"""Text of a generated Triton kernel and what its arguments are bound to.

One kernel is one file: a header for people, imports, one function. Its name ends in a hash of its own
text, so that equal kernels of different layers are one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rusteeze.artifact.cuda_contract import Count, Param, ParamType
from rusteeze.codegen.views import Storage, View

TYPES: dict[str, ParamType] = {
    "f32": "*fp32", "bf16": "*bf16", "f16": "*fp16", "i32": "*i32", "bool": "*i32", "u8": "*u8",
}  # fmt: skip
"""IR element types in memory; a bool takes a whole word."""
ALIGNMENT = 16
PREAMBLE = """import triton
import triton.language as tl

from rusteeze.codegen.gpu import functions as fn
"""


@dataclass(frozen=True)
class PageSet:
    """The pages of one layer's keys or values."""

    kind: str  # "key_pages" or "value_pages"
    layer: int


COUNTER_BYTES = 64 * 1024
"""The beginning of the workspace, where programs count who has arrived."""


@dataclass(frozen=True)
class Workspace:
    """Memory that every call may use, from a byte on; see CudaPlan.workspace_bytes."""

    offset: int


@dataclass(frozen=True)
class Pointer:
    """An argument: memory and a byte offset into it (into a row of it)."""

    target: Storage | PageSet | Workspace
    offset: int = 0


@dataclass(frozen=True)
class Options:
    """How Triton compiles a kernel."""

    num_warps: int = 4
    num_stages: int = 3


@dataclass
class Source:
    """A kernel that is being written. ``label`` begins its name; ``about`` is its header."""

    label: str
    options: Options = Options()
    about: list[str] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    args: list[Pointer | Count] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    copies_tiles: bool = False
    """Whether the text has a variant, ``if TMA:``, for architectures whose hardware copies whole tiles."""
    _indent: int = 1
    _number: int = 0

    # ---- parameters -----------------------------------------------------------------------------
    def pointer(self, name: str, dtype: str, target: Pointer, aligned: bool = True) -> str:
        """A pointer parameter; returns its name. ``aligned``: promise 16 bytes where it begins there."""
        # buffers begin at multiples of 64 bytes, and so do their rows
        divisible = ALIGNMENT if aligned and target.offset % ALIGNMENT == 0 else 1
        self.params.append(Param(name, TYPES[dtype], divisible))
        self.args.append(target)
        return name

    def view(self, name: str, view: View) -> str:
        return self.pointer(name, view.access.dtype, pointer_to(view))

    def number(self, name: str, count: Count) -> str:
        self.params.append(Param(name, "i32"))
        self.args.append(count)
        return name

    # ---- text -----------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        self.lines.append("    " * self._indent + text)

    def let(self, expression: str) -> str:
        """A new variable with that value."""
        name = f"v{self._number}"
        self._number += 1
        self.line(f"{name} = {expression}")
        return name

    def constants(self, **values: int | float) -> None:
        for name, value in values.items():
            self.line(f"{name}: tl.constexpr = {literal(value)}")

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(head)
        self._indent += 1
        yield
        self._indent -= 1

    @property
    def name(self) -> str:
        text = f"{self.label}|{self.options}|{self.params}|{self.lines}"
        return f"{self.label}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def text(self, tma: bool = False) -> str:
        """The whole file. ``tma``: with tiles copied by the hardware, where the kernel has that variant."""
        names = ", ".join(p.name for p in self.params)
        header = "\n".join(self.about)
        body = "\n".join(self.lines)
        variant = f"TMA = tl.constexpr({tma})\n" if self.copies_tiles else ""
        return f'"""{header}\n"""\n\n{PREAMBLE}{variant}\n\n@triton.jit\ndef {self.name}({names}):\n{body}\n'


def literal(value: float | int) -> str:
    """A number as Triton source."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    return repr(value)


def pointer_to(view: View) -> Pointer:
    """A view's first element."""
    return Pointer(view.storage, view.offset * view.element_bytes)


def row_index(row: str, num_elements: int) -> str:
    """A row number to be multiplied into a matrix of that many elements: in 64 bits where 32 do not do."""
    return row if num_elements < 1 << 31 else f"({row}).to(tl.int64)"


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def warps_for(num_elements: int) -> int:
    """Warps of a program that works on that many elements at once."""
    return min(8, max(1, power_of_two(num_elements) // 256))
