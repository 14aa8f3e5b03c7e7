"""What lowering for GPUs knows while it walks a graph: where every value lives, and the calls so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rusteeze.artifact.contract import Pages
from rusteeze.artifact.cuda_contract import Capacity, Count
from rusteeze.codegen.access import Access
from rusteeze.codegen.gpu.source import Pointer, Source
from rusteeze.codegen.gpu.weights import GpuStatics, Layout
from rusteeze.codegen.views import Arena, Space, Storage, View, inner_shape, row_major, space_of
from rusteeze.errors import UserError
from rusteeze.ir import Graph, Node, Value

COUNT_SLOTS = {"T": 0, "R": 1, "tiles": 2}
CAPACITIES: dict[str, Capacity] = {"T": "tokens", "R": "rows"}
ONE = Count()


class LoweringError(UserError):
    """A graph for which there is no kernel; names the node and its module."""


@dataclass(frozen=True)
class GpuOptions:
    """``cache_dtype``: element type of the KV cache, "f32" or "bf16"."""

    cache_dtype: str = "bf16"
    max_model_len: int = 4096


@dataclass(frozen=True)
class PendingLaunch:
    """A launch before memory is planned: kernel name, arguments, grid."""

    kernel: str
    args: tuple[Pointer | Count, ...]
    grid: tuple[Count, Count, Count]


@dataclass(frozen=True)
class PendingChoice:
    launches: tuple[PendingLaunch, ...]
    up_to: int = 0


@dataclass(frozen=True)
class PendingCall:
    """What a node (or a part of it) launches, by a capacity."""

    choices: tuple[PendingChoice, ...]
    by: Capacity
    node: Node
    what: Literal["", "reads pages", "writes pages"] = ""


@dataclass(frozen=True)
class NormedRows:
    """Rows x[K] f32 that are read as x / sqrt(mean of squares + eps) * (weight + offset), rounded to the element
    type of ``written``: there a kernel of its own puts them where a reader does not apply the norm itself.
    ``sums``: of the squares of a row's columns, in groups."""

    source: View
    sums: View
    weight: View | None
    eps: float
    offset: float
    written: View

    @property
    def width(self) -> int:
        return self.source.access.shape[-1]


@dataclass(frozen=True)
class SortedPairs:
    """``order``: the pairs t * top + j of a step's tokens and their choices, sorted by expert, one behind the other
    from its first row on; ``counts``: how many each expert has, in its first row."""

    order: View
    counts: View
    experts: int
    top: int


@dataclass
class Lowering:
    """State of one lowering. The functions that lower ops (lower_*.py) are written against this."""

    graph: Graph
    options: GpuOptions
    query_tokens: int
    env: dict[Value, View] = field(default_factory=dict)
    arena: Arena = field(default_factory=Arena)
    statics: GpuStatics = field(default_factory=GpuStatics)
    kernels: dict[str, Source] = field(default_factory=dict)
    calls: list[PendingCall] = field(default_factory=list)
    pages: dict[int, Pages] = field(default_factory=dict)
    workspace_bytes: int = 0
    buckets: set[int] = field(default_factory=set)
    sums: dict[Value, View] = field(default_factory=dict)
    """Sums of squares that a product leaves beside its result."""
    pairs: dict[Value, SortedPairs] = field(default_factory=dict)
    best: tuple[View, View] | None = None
    """Largest logits of the parts of each row, and their tokens."""
    normed: dict[Value, NormedRows] = field(default_factory=dict)
    """Norms that their readers apply."""
    _named: dict[tuple[str, str], Storage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.static = self.graph.static_values()
        self.uses = self.graph.uses()
        for v in self.graph.inputs:
            self.env[v] = View(self.input(v.name), Access("i32", 1, (), ()))

    # ---- memory ---------------------------------------------------------------------------------
    def input(self, name: str) -> Storage:
        """A step input."""
        return self._named.setdefault(("input", name), Storage("input", name))

    def weight(self, value: Value, layout: Layout = "rows") -> Pointer:
        """A static value in the artifact, in a layout."""
        name = self.statics.name(value, layout)
        return Pointer(self._named.setdefault(("weight", name), Storage("weight", name)))

    def view(self, value: Value) -> View:
        """Where a value's elements are."""
        if value not in self.static:
            return self.env[value]
        storage = self.weight(value).target
        assert isinstance(storage, Storage)
        shape = inner_shape(value.type)
        return View(storage, Access(memory_type(value), 0, shape, row_major(shape)))

    def operand(self, value: Value, result: Value) -> View:
        """The same, as seen from a result: a static [1, ...] beside token values has no row axis."""
        view = self.view(value)
        a = view.access
        if view.storage.kind != "weight" or len(a.shape) != result.type.rank or not a.shape:
            return view
        if a.shape[0] != 1:
            raise LoweringError(f"a static operand has a row per token: {result!r}")
        return view.moved(Access(a.dtype, 0, a.shape[1:], a.strides[1:]))

    def new(self, value: Value) -> View:
        """Fresh scratch for a result, row-major; bf16 for what is rounded to that."""
        view = self.scratch(self.space(value), memory_type(value), inner_shape(value.type))
        self.env[value] = view
        return view

    def scratch(self, space: Space, dtype: str, shape: tuple[int, ...]) -> View:
        strides = row_major(shape)
        count = shape[0] * strides[0] if shape else 1
        size = 2 if dtype == "bf16" else 4
        storage = self.arena.new(space, size * count, dtype)
        return View(storage, Access(dtype, storage.row_bytes // size, shape, strides))

    def space(self, value: Value) -> Space:
        space = space_of(value.type)
        if not space:
            raise LoweringError(f"{value!r} of {value.node!r} depends on no token")
        return space

    def reserve(self, workspace_bytes: int) -> None:
        """Calls run one after the other: the workspace is as large as the largest wants it."""
        self.workspace_bytes = max(self.workspace_bytes, -(-workspace_bytes // 256) * 256)

    # ---- calls ----------------------------------------------------------------------------------
    def counts(self, k: Source, what: str) -> str:
        """A parameter with one of the step's counts, and a variable that holds it: "T", "R" or "tiles"."""
        count = Pointer(self.input("counts"), 4 * COUNT_SLOTS[what])
        return k.let(f"tl.load({k.pointer('count', 'i32', count, aligned=False)})")

    def launch(self, k: Source, grid: Sequence[Count]) -> PendingLaunch:
        """A finished source as a launch; equal sources are one kernel."""
        self.kernels.setdefault(k.name, k)
        x, y, z = (*grid, ONE, ONE)[:3]
        return PendingLaunch(k.name, tuple(k.args), (x, y, z))

    def call(self, node: Node, choices: Sequence[PendingChoice], by: Capacity) -> None:
        self.buckets.update(c.up_to for c in choices if c.up_to and by == "tokens")
        self.calls.append(PendingCall(tuple(choices), by, node))

    def call_one(self, node: Node, k: Source, grid: Sequence[Count], by: Capacity = "tokens") -> None:
        """A call that always launches the same kernel."""
        self.call(node, [PendingChoice((self.launch(k, grid),))], by)


def memory_type(value: Value) -> str:
    """As what elements of a result lie in scratch: bf16 where they are rounded to that."""
    if value.op == "quantize" or (value.node and value.node.body and _rounded_output(value)):
        return "bf16"
    return "f32" if value.type.dtype.is_float else value.type.dtype.value


def _rounded_output(value: Value) -> bool:
    """Whether a result of a region ends in a quantize."""
    assert value.node is not None
    assert value.node.body is not None
    return value.node.body.outputs[value.index].op == "quantize"


def rows_of(view_space: Space) -> Count:
    """A grid dimension with a program per row."""
    return Count(CAPACITIES[view_space])
