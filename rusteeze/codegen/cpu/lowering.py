"""What lowering knows while it walks a graph: where every value lives, and the calls recorded so far."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from rusteeze.artifact.contract import Pages
from rusteeze.codegen.access import Access
from rusteeze.codegen.cpu.activations import row_bytes
from rusteeze.codegen.cpu.emit import STEP_ROWS, STEP_TOKENS, Emitter
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.schedule import MatmulKey, Schedule, Table, choose
from rusteeze.codegen.cpu.tiles import TileLayout
from rusteeze.codegen.statics import Layout, Statics
from rusteeze.codegen.views import (
    Arena,
    RoundedView,
    Space,
    Storage,
    View,
    inner_shape,
    row_major,
    space_of,
)
from rusteeze.errors import UserError
from rusteeze.ir import Graph, Node, Value

EmitKernel = Callable[[Emitter, Isa], None]


class LoweringError(UserError):
    """A graph for which there is no kernel; names the node and its module."""


@dataclass(frozen=True)
class Tunable:
    """How to emit a kernel with any schedule."""

    key: MatmulKey
    emit: Callable[[Emitter, Schedule], None]


@dataclass(frozen=True)
class Kernel:
    """A kernel to build for every instruction set. ``emit`` fills an Emitter."""

    name: str
    emit: EmitKernel = field(compare=False)
    tunable: Tunable | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PageSet:
    """The pages of one layer's keys or values, as an argument."""

    kind: str  # "key_pages" or "value_pages"
    layer: int


@dataclass(frozen=True)
class Pointer:
    """An argument of a call: memory and a byte offset into it (into a row of it)."""

    target: Storage | PageSet
    offset: int = 0


@dataclass(frozen=True)
class PendingCall:
    """A call before memory is planned. ``rowwise``: it does little for each row, and threads share rows."""

    kernel: str
    args: tuple[Pointer, ...]
    reads: frozenset[Storage | PageSet]
    writes: frozenset[Storage | PageSet]
    node: Node
    rowwise: bool = False


@dataclass(frozen=True)
class LoweringOptions:
    """``cache_dtype``: element type of the KV cache, "f32" or "bf16". ``isas``: for which libraries will
    be built, by preference. ``tables``: where schedules are looked up, the first that has one wins."""

    cache_dtype: str = "f32"
    max_model_len: int = 4096
    isas: tuple[Isa, ...] = ()
    tables: tuple[Table, ...] = ()


class Lowering:
    """State of one lowering. The functions that lower ops (lower_*.py) are written against this."""

    def __init__(self, graph: Graph, options: LoweringOptions, query_tokens: int) -> None:
        self.graph, self.options, self.query_tokens = graph, options, query_tokens
        self.static = graph.static_values()
        self.uses = graph.uses()
        self.matmul_weights = matmul_weights(graph)
        self.env: dict[Value, View | RoundedView] = {}
        self.arena = Arena()
        self.statics = Statics()
        self.kernels: dict[str, Kernel] = {}
        self.calls: list[PendingCall] = []
        self.pages: dict[int, Pages] = {}
        self._named: dict[tuple[str, str], Storage] = {}
        for v in graph.inputs:
            self.env[v] = View(self.input(v.name), Access("i32", 1, (), ()))

    # ---- memory ---------------------------------------------------------------------------------
    def input(self, name: str) -> Storage:
        """A step input."""
        return self._named.setdefault(("input", name), Storage("input", name))

    def weight(self, value: Value, layout: Layout) -> Pointer:
        """A static value in the artifact, in a layout."""
        name = self.statics.name(value, layout)
        return Pointer(self._named.setdefault(("weight", name), Storage("weight", name)))

    def weight_tiles(self, value: Value, layout: TileLayout, halves: bool = False) -> list[Pointer]:
        """A matmul's weight: its tiles, and its codebook if it has one."""
        args = [self.weight(value, "halves" if halves else "tiles")]
        if layout.format.family == "codebook":
            args.append(self.weight(value, "table"))
        return args

    def view(self, value: Value) -> View:
        """Where a value's elements are. LoweringError for rounded rows, which only matmuls read."""
        if value in self.static:
            return self._static_view(value)
        view = self.env[value]
        if isinstance(view, RoundedView):
            raise LoweringError(f"rounded activations are read as float: {value!r}")
        return view

    def _static_view(self, value: Value) -> View:
        storage = self.weight(value, "rows").target
        assert isinstance(storage, Storage)
        dtype = "f32" if value.type.dtype.is_float else "i32"
        shape = inner_shape(value.type)
        return View(storage, Access(dtype, 0, shape, row_major(shape)))

    def new(self, value: Value) -> View:
        """Fresh scratch for a result, row-major."""
        view = self.scratch(self.space(value), value, inner_shape(value.type))
        self.env[value] = view
        return view

    def scratch(self, space: Space, value: Value, shape: tuple[int, ...]) -> View:
        """Fresh row-major scratch of a shape, with the element type of ``value``."""
        dtype = "f32" if value.type.dtype.is_float else "i32"
        strides = row_major(shape)
        count = shape[0] * strides[0] if shape else 1
        storage = self.arena.new(space, 4 * count, value.op)
        return View(storage, Access(dtype, storage.row_bytes // 4, shape, strides))

    def new_rounded(self, value: Value, kind: str) -> RoundedView:
        """Fresh scratch for rows rounded to ``kind``, those of a token one behind the other. LoweringError
        unless they are [T, K] or [T, n, K]."""
        *each, columns = inner_shape(value.type)
        if len(each) > 1:
            raise LoweringError(f"only rows are rounded, not {value.type}")
        space, count = self.space(value), math.prod(each)
        storages = [self.arena.exact(space, count * size, kind) for size in row_bytes(kind, columns)]
        view = RoundedView(kind, tuple(storages), columns)
        self.env[value] = view
        return view

    def space(self, value: Value) -> Space:
        space = space_of(value.type)
        if not space:
            raise LoweringError(f"{value!r} of {value.node!r} depends on no token")
        return space

    def rows_slot(self, value: Value) -> int:
        """The step number that says how many rows a result has."""
        return STEP_ROWS if self.space(value) == "R" else STEP_TOKENS

    # ---- calls ----------------------------------------------------------------------------------
    def call(
        self, label: str, key: str, emit: EmitKernel, reads: list[Pointer], writes: list[Pointer],
        node: Node, tunable: Tunable | None = None, rowwise: bool = False,
    ) -> None:  # fmt: skip
        """Record a call with the arguments ``reads + writes``; kernels of equal key are shared."""
        name = f"{label}_{hashlib.sha256(f'{label}|{key}'.encode()).hexdigest()[:8]}"
        self.kernels.setdefault(name, Kernel(name, emit, tunable))
        self.calls.append(
            PendingCall(
                name, tuple(reads + writes), frozenset(p.target for p in reads),
                frozenset(p.target for p in writes), node, rowwise,
            )
        )  # fmt: skip


    def call_tunable(
        self, label: str, key: str, tunable: Tunable, reads: list[Pointer], writes: list[Pointer],
        node: Node,
    ) -> None:  # fmt: skip
        """The same for a kernel with a schedule, which is part of its key, for every instruction set."""
        tables = self.options.tables
        schedules = [choose(tunable.key, isa, tables) for isa in self.options.isas]

        def emit(k: Emitter, isa: Isa) -> None:
            tunable.emit(k, choose(tunable.key, isa, tables))

        self.call(label, f"{key}|{schedules}", emit, reads, writes, node, tunable)


def at(view: View) -> Pointer:
    """A view's first element as an argument."""
    return Pointer(view.storage, view.offset * view.element_bytes)


def rounding_of(value: Value) -> str:
    """ "q8" or "bf16": what the ``quantize`` behind a value rounds to."""
    assert value.node is not None
    return {"int8": "q8", "bf16": "bf16"}[str(value.node.attrs["to"])]


def matmul_weights(graph: Graph) -> set[Value]:
    """Weights that some matmul reads: these are stored as tiles."""
    found: set[Value] = set()
    for node in graph.nodes:
        if node.op.name in ("linear", "block_linear", "expert_linear"):
            found.update(node.inputs())
        elif node.op.name == "fused" and node.attrs["anchor"] == "linear":
            assert node.body is not None
            bound = dict(zip(node.body.inputs, node.inputs(), strict=True))
            found.update(
                bound[n.operands[1]] for n in node.body.nodes if n.op.name == "linear" and n.operands[1]
            )
    return found


def without_row_axis(view: View, result: Value) -> View:
    """A static operand of shape [1, ...] beside token values: the 1 stands for the tokens."""
    a = view.access
    if view.storage.kind != "weight" or len(a.shape) != result.type.rank or not a.shape:
        return view
    if a.shape[0] != 1:
        raise LoweringError(f"a static operand has a row per token: {result!r}")
    return view.moved(Access(a.dtype, 0, a.shape[1:], a.strides[1:]))
