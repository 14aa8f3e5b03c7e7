"""Final graph → kernels and a plan.

Walks the graph once. Shape ops become views; every other node (or fused region) becomes one call of a
kernel that depends on shapes and strides only, so that layers share kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rusteeze.artifact.contract import SCHEMA, Arg, Buffer, Call, Pages, Plan
from rusteeze.codegen.cpu import attention, embedding, regions, rope, rowwise
from rusteeze.codegen.cpu.access import Access, Operand
from rusteeze.codegen.cpu.activations import GROUP, HEADER
from rusteeze.codegen.cpu.attention import AttentionShape
from rusteeze.codegen.cpu.bodies import as_body, body_key, is_elementwise, outer_operands
from rusteeze.codegen.cpu.emit import STEP_ROWS, STEP_TOKENS, Emitter
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.regions import LinearAnchor, Region, Result
from rusteeze.codegen.cpu.rope import Rotation
from rusteeze.codegen.cpu.tiles import TileLayout, tile_format
from rusteeze.codegen.memory import Lifetime, assign_offsets
from rusteeze.codegen.statics import Statics, format_of
from rusteeze.codegen.views import (
    Arena,
    QuantizedView,
    Space,
    Storage,
    View,
    inner_shape,
    row_major,
    space_of,
)
from rusteeze.ir import Graph, Node, Value, make_node, print_node_line

SHAPE_OPS = frozenset({"reshape", "permute", "slice", "broadcast_to"})


class LoweringError(Exception):
    """A graph for which there is no kernel; names the node and its module."""

    user_error = True


@dataclass(frozen=True)
class Kernel:
    """A kernel to build for every instruction set. ``emit`` fills an Emitter."""

    name: str
    emit: Callable[[Emitter, Isa], None] = field(compare=False)


@dataclass
class _Call:
    kernel: str
    args: list[tuple[Any, int]]  # (Storage | ("key_pages"|"value_pages", layer), byte offset)
    reads: set[Any]
    writes: set[Any]
    origin: str


@dataclass(frozen=True)
class Lowered:
    plan: Plan
    kernels: dict[str, Kernel]
    statics: Statics


@dataclass(frozen=True)
class LoweringOptions:
    cache_dtype: str = "f32"  # "f32" or "bf16"
    max_model_len: int = 4096


def lower(graph: Graph, options: LoweringOptions) -> Lowered:
    """LoweringError when a node has no kernel."""
    lowering = _Lowering(graph, options)
    for node in graph.nodes:
        lowering.node(node)
    return lowering.finish()


Pointer = tuple[Any, int]


class _Lowering:
    def __init__(self, graph: Graph, options: LoweringOptions) -> None:
        self.graph, self.options = graph, options
        self.static = graph.static_values()
        self.uses = graph.uses()
        self.env: dict[Value, View | QuantizedView] = {}
        self.arena = Arena()
        self.inputs = {name: Storage("input", name) for name in ("input_ids", "positions", "rows")}
        self.weights: dict[str, Storage] = {}
        self.kernels: dict[str, Kernel] = {}
        self.calls: list[_Call] = []
        self.pages: dict[int, Pages] = {}
        self.statics = Statics()
        self.matmul_weights = _matmul_weights(graph)
        self.query_tokens = min(
            (self._attention_shape(n).query_tokens for n in graph.nodes if n.op.name == "attention"),
            default=1,
        )
        for v in graph.inputs:
            self.env[v] = View(self.inputs[v.name], Access("i32", 1, (), ()))

    # ---- values -------------------------------------------------------------------------------
    def view(self, value: Value) -> View:
        if value in self.static:
            return self._static_view(value)
        view = self.env[value]
        if isinstance(view, QuantizedView):
            raise LoweringError(f"a quantised value is read as float: {value!r}")
        return view

    def _weight(self, name: str) -> Storage:
        return self.weights.setdefault(name, Storage("weight", name))

    def _static_view(self, value: Value) -> View:
        storage = self._weight(self.statics.name(value, "rows"))
        dtype = "f32" if value.type.dtype.is_float else "i32"
        shape = tuple(d for d in value.type.shape if isinstance(d, int))
        return View(storage, Access(dtype, 0, shape, row_major(shape)))

    def new(self, value: Value) -> View:
        """Fresh scratch for a result, row-major."""
        space, shape = self._space(value), inner_shape(value.type)
        dtype = "f32" if value.type.dtype.is_float else "i32"
        strides = row_major(shape)
        count = (shape[0] * strides[0]) if shape else 1
        storage = self.arena.new(space, 4 * count, value.op)
        view = View(storage, Access(dtype, storage.row_bytes // 4, shape, strides))
        self.env[value] = view
        return view

    def new_quantized(self, value: Value) -> QuantizedView:
        columns = inner_shape(value.type)[-1]
        space = self._space(value)
        codes = self.arena.new(space, columns, "codes")
        header = self.arena.new(space, columns // GROUP * HEADER * 4, "header")
        if codes.row_bytes != columns:
            # rows of codes follow each other without padding, as kernels index them
            codes.row_bytes = columns
        header.row_bytes = columns // GROUP * HEADER * 4
        self.env[value] = QuantizedView(codes, header, columns)
        return self.env[value]  # type: ignore[return-value]

    def _space(self, value: Value) -> Space:
        space = space_of(value.type)
        if not space:
            raise LoweringError(f"{value!r} of {value.node!r} depends on no token")
        return space

    @staticmethod
    def rows_slot(space: Space) -> int:
        return STEP_ROWS if space == "R" else STEP_TOKENS

    def pointer(self, view: View) -> Pointer:
        return view.storage, view.offset * view.element_bytes

    # ---- calls --------------------------------------------------------------------------------
    def call(
        self, role: str, key: str, emit: Callable[[Emitter, Isa], None], reads: list[Pointer],
        writes: list[Pointer], node: Node, order: list[Pointer] | None = None,
    ) -> None:  # fmt: skip
        """Record a kernel call; kernels of equal key are shared. ``order``: argument order if it is not
        reads then writes."""
        name = f"{role}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        self.kernels.setdefault(name, Kernel(name, emit))
        args = order if order is not None else reads + writes
        self.calls.append(
            _Call(name, args, {p[0] for p in reads}, {p[0] for p in writes}, node.origin)
        )

    def node(self, node: Node) -> None:
        op = node.op.name
        if all(r in self.static for r in node.results):
            return
        if op in SHAPE_OPS:
            self._shape_op(node)
        elif op == "fused":
            self._fused(node)
        elif op == "linear":
            self._linear(node)
        elif op in ("rms_norm", "layer_norm"):
            self._norm(node)
        elif op == "attention":
            self._attention(node)
        elif op == "embedding":
            self._embedding(node)
        elif op == "rope":
            self._rope(node)
        elif op == "expert_linear":
            self._expert_linear(node)
        elif op == "quantize" or is_elementwise(node):
            self._pointwise(node)
        elif op in rowwise.OPS:
            self._rowwise(op, node)
        else:
            raise LoweringError(f"no CPU kernel for {print_node_line(node)} ({node.origin})")

    def _fused(self, node: Node) -> None:
        anchor = {"linear": self._linear, "norm": self._norm, "pointwise": self._pointwise}
        anchor[str(node.attrs["anchor"])](node)

    # ---- shapes -------------------------------------------------------------------------------
    def _shape_op(self, node: Node) -> None:
        source = node.operands[0]
        assert source is not None
        view = self.view(source)
        a = view.access
        shape = inner_shape(node.result.type)
        if node.op.name == "reshape":
            if not a.contiguous:
                view = self._copied(source, node)
                a = view.access
            self.env[node.result] = view.moved(Access(a.dtype, a.row, shape, row_major(shape)))
        elif node.op.name == "permute":
            perm: tuple[int, ...] = node.attrs["perm"]  # type: ignore[assignment]
            if perm[0] != 0:
                raise LoweringError(f"permute moves the token axis: {print_node_line(node)}")
            strides = tuple(a.strides[p - 1] for p in perm[1:])
            self.env[node.result] = view.moved(Access(a.dtype, a.row, shape, strides))
        elif node.op.name == "slice":
            axis = int(node.attrs["axis"]) % source.type.rank - 1  # type: ignore[call-overload]
            start, step = int(node.attrs["start"]), int(node.attrs["step"])  # type: ignore[call-overload]
            strides = tuple(s * step if i == axis else s for i, s in enumerate(a.strides))
            access = Access(a.dtype, a.row, shape, strides)
            self.env[node.result] = view.moved(access, start * a.strides[axis])
        else:
            strides = tuple(0 if d == 1 else s for d, s in zip(a.shape, a.strides, strict=True))
            self.env[node.result] = view.moved(Access(a.dtype, a.row, shape, strides))

    def _copied(self, value: Value, node: Node) -> View:
        """A row-major copy of a value (of a static one per row: with row stride 0 it stays as it is)."""
        source = self.view(value)
        space, shape = self._space(value), source.access.shape
        storage = self.arena.new(space, 4 * row_major(shape)[0] * shape[0], "copy")
        access = Access(source.access.dtype, storage.row_bytes // 4, shape, row_major(shape))
        target = View(storage, access)
        self._rowwise_call("copy", {}, [source], [target], space, node)
        return target

    # ---- anchors ------------------------------------------------------------------------------
    def _results(self, node: Node, body: Graph) -> tuple[tuple[Result, ...], list[Pointer]]:
        results, pointers = [], []
        for i, v in enumerate(node.results):
            if regions.is_quantized(body, i):
                q = self.new_quantized(v)
                results.append(Result(None, q.columns))
                pointers += [(q.codes, 0), (q.header, 0)]
            else:
                view = self.new(v)
                results.append(Result(view.access))
                pointers.append(self.pointer(view))
        return tuple(results), pointers

    def _linear(self, node: Node) -> None:
        body = as_body(node)
        (linear,) = (n for n in body.nodes if n.op.name == "linear")
        bound = dict(zip(body.inputs, outer_operands(node), strict=True))
        x, w = bound[linear.operands[0]], bound[linear.operands[1]]  # type: ignore[index]
        halves = _halves(body, linear)
        layout = TileLayout(tile_format(format_of(w)), *_matrix(w))
        kind, stride, reads = self._activation(x, node)
        reads += self._weight_args(w, layout)
        operands: list[Access | None] = []
        own = (linear.operands[0], linear.operands[1])
        for v in body.inputs:
            if v in own:
                operands.append(None)
                continue
            view = self.view(bound[v])
            operands.append(view.access)
            reads.append(self.pointer(view))
        results, writes = self._results(node, body)
        slot = self.rows_slot(self._space(node.results[0]))
        region = Region(body, tuple(operands), results, slot)
        anchor = LinearAnchor(linear, halves, layout, kind, stride)
        label = f"linear_{_body_label(body, linear)}_{layout.format}_{kind}_k{layout.k}_n{layout.n}"
        key = f"{label}|{stride}|{_region_key(region)}"
        self.call(
            label, key, lambda k, isa: regions.linear_region(k, isa, region, anchor), reads, writes, node
        )  # fmt: skip

    def _activation(self, x: Value, node: Node) -> tuple[str, int, list[Pointer]]:
        if x not in self.static and isinstance(self.env[x], QuantizedView):
            q = self.env[x]
            assert isinstance(q, QuantizedView)
            return "q8", q.columns, [(q.codes, 0), (q.header, 0)]
        view = self.view(x)
        if not view.access.contiguous:
            view = self._copied(x, node)
        return "f32", view.access.row, [self.pointer(view)]

    def _weight_args(self, w: Value, layout: TileLayout) -> list[Pointer]:
        args: list[Pointer] = [(self._weight(self.statics.name(w, "tiles")), 0)]
        if layout.format.family == "codebook":
            args.append((self._weight(self.statics.name(w, "table")), 0))
        return args

    def _norm(self, node: Node) -> None:
        body = as_body(node)
        (norm,) = (n for n in body.nodes if n.op.name in ("rms_norm", "layer_norm"))
        shape = inner_shape(norm.result.type)
        if len(shape) > 2:
            raise LoweringError(f"norm over more than [T, H, D]: {print_node_line(node)}")
        label = f"{_body_label(body, None)}_{'x'.join(map(str, shape))}"
        self._region(node, body, label, lambda k, region: regions.norm_region(k, region, norm, shape))

    def _pointwise(self, node: Node) -> None:
        body = as_body(node)
        shape = inner_shape(node.results[0].type)
        label = f"{_body_label(body, None)}_{'x'.join(map(str, shape)) or '1'}"
        self._region(node, body, label, lambda k, region: regions.pointwise_region(k, region, shape))

    def _region(
        self, node: Node, body: Graph, label: str, emit: Callable[[Emitter, Region], None]
    ) -> None:
        views = [self.view(v) for v in outer_operands(node)]
        views = [_without_row_axis(v, node) for v in views]
        results, writes = self._results(node, body)
        slot = self.rows_slot(self._space(node.results[0]))
        region = Region(body, tuple(v.access for v in views), results, slot)
        reads = [self.pointer(v) for v in views]
        key = f"{label}|{_region_key(region)}"
        self.call(label, key, lambda k, isa: emit(k, region), reads, writes, node)

    # ---- attention ----------------------------------------------------------------------------
    def _attention_shape(self, node: Node) -> AttentionShape:
        q, key, v = (o.type.shape for o in node.operands[:3])  # type: ignore[union-attr]
        dtype = self.options.cache_dtype
        if int(q[2]) % 2:
            dtype = "f32"
        return AttentionShape(
            heads=int(q[1]), kv_heads=int(key[1]), width=int(q[2]), value_width=int(v[2]),
            scale=float(node.attrs["scale"]), window=int(node.attrs["window"]),  # type: ignore[arg-type,call-overload]
            softcap=float(node.attrs["softcap"]), sinks=node.operands[3] is not None, cache=dtype,  # type: ignore[arg-type]
        )  # fmt: skip

    def _attention(self, node: Node) -> None:
        q, key, value, sinks = node.operands
        assert q is not None
        assert key is not None
        assert value is not None
        shape = self._attention_shape(node)
        layer = int(node.attrs["layer"])  # type: ignore[call-overload]
        self.pages[layer] = Pages(layer, shape.key_page_bytes, shape.value_page_bytes)
        pages: list[Pointer] = [(("key_pages", layer), 0), (("value_pages", layer), 0)]
        rotation, source, tables = self._rotation_of(key)
        key_view, value_view = self.view(source), self.view(value)
        reads = [self.pointer(key_view), *tables, self.pointer(value_view), (_input("slot_mapping"), 0)]
        label = f"write_cache_h{shape.kv_heads}_d{shape.width}x{shape.value_width}_{shape.cache}"
        if rotation:
            label += f"_rope_{rotation.label()}"
        key_text = f"{label}|{key_view.access.key()}|{value_view.access.key()}|{rotation}"
        a, b = key_view.access, value_view.access
        self.call(
            label, key_text, lambda k, isa: attention.write_cache(k, shape, a, b, rotation),
            reads, pages, node,
        )  # fmt: skip
        query = self.view(q)
        reads = [self.pointer(query)]
        if sinks is not None:
            reads.append(self.pointer(self.view(sinks)))
        reads += [(_input("tiles"), 0), (_input("block_tables"), 0), *pages]
        out = self.new(node.result)
        tokens = self.query_tokens
        label = f"attention_{shape.label()}_q{tokens}"
        out_row = out.access.row
        self.call(
            label, f"{label}|{query.access.key()}|{shape}|{out_row}",
            lambda k, isa: attention.attend(k, shape, query.access, tokens, out_row), reads,
            [self.pointer(out)], node,
        )  # fmt: skip

    def _rotation_of(self, key: Value) -> tuple[Rotation | None, Value, list[Pointer]]:
        """A rope whose only reader is the cache is applied while writing."""
        node = key.node
        if node is None or node.op.name != "rope" or len(self.uses[key]) > 1:
            return None, key, []
        source = node.operands[0]
        assert source is not None
        rotation, tables = self._rotation(node)
        return rotation, source, tables

    def _rotation(self, node: Node) -> tuple[Rotation, list[Pointer]]:
        tables: list[Pointer] = [(self.inputs["positions"], 0)]
        for v in node.operands[1:]:
            lookup = v.node if v is not None else None
            if lookup is None or lookup.op.name != "embedding" or lookup.operands[1] not in self.static:
                raise LoweringError(f"rope without a table: {print_node_line(node)}")
            table = lookup.operands[1]
            assert table is not None
            tables.append(self.pointer(self._static_view(table)))
        width = int(node.attrs["width"])  # type: ignore[call-overload]
        style, at_end = str(node.attrs["style"]), bool(node.attrs["at_end"])
        return Rotation(style, width, at_end), tables

    def _rope(self, node: Node) -> None:
        users = self.uses.get(node.result, [])
        if len(users) == 1 and users[0].op.name == "attention" and users[0].operands[1] is node.result:
            return  # applied by the cache writer
        source = node.operands[0]
        assert source is not None
        rotation, tables = self._rotation(node)
        view, out = self.view(source), self.new(node.result)
        label = f"rope_{rotation.label()}_{'x'.join(map(str, view.access.shape))}"
        self.call(
            label, f"{label}|{view.access.key()}|{out.access.key()}",
            lambda k, isa: rope.rope(k, view.access, rotation, out.access),
            [self.pointer(view), *tables], [self.pointer(out)], node,
        )  # fmt: skip

    # ---- lookups and experts ------------------------------------------------------------------
    def _embedding(self, node: Node) -> None:
        users = self.uses.get(node.result, [])
        ids, table = node.operands
        assert ids is not None
        assert table is not None
        if users and all(u.op.name == "rope" for u in users) and table in self.static:
            return  # rope reads the table itself
        view, out = self.view(ids), self.new(node.result)
        slot = self.rows_slot(self._space(node.result))
        fmt = tile_format(format_of(table))
        if table not in self.matmul_weights and fmt.family == "dense":
            width = out.access.shape[-1]
            label = f"embedding_rows_{width}"
            self.call(
                label, f"{label}|{view.access.key()}|{out.access.key()}",
                lambda k, isa: embedding.embedding_rows(k, view.access, width, out.access, k.step(slot)),
                [self.pointer(view), self.pointer(self._static_view(table))], [self.pointer(out)], node,
            )  # fmt: skip
            return
        layout = TileLayout(fmt, *_matrix(table))
        label = f"embedding_{fmt}_k{layout.k}"
        self.call(
            label, f"{label}|{view.access.key()}|{out.access.key()}|{layout}",
            lambda k, isa: embedding.embedding_tiles(k, view.access, layout, out.access, k.step(slot)),
            [self.pointer(view), *self._weight_args(table, layout)], [self.pointer(out)], node,
        )  # fmt: skip

    def _expert_linear(self, node: Node) -> None:
        x, idx, w, b = node.operands
        assert x is not None
        assert idx is not None
        assert w is not None
        if node.attrs["transposed"]:
            w = make_node("permute", [w], {"perm": (0, 2, 1)}, node.origin).result
            self.static.add(w)
        experts, n, width = (int(d) for d in w.type.shape)
        layout = TileLayout(tile_format(format_of(w)), n, width)
        kind, stride, reads = self._activation(x, node)
        per_pair = x.type.rank == 3
        if per_pair:
            stride = width
        index = self.view(idx)
        reads.append(self.pointer(index))
        reads += self._weight_args(w, layout)
        if b is not None:
            reads.append(self.pointer(self._static_view(b)))
        out = self.new(node.result)
        top = index.access.shape[0]
        label = f"expert_linear_{layout.format}_{kind}_e{experts}_top{top}_k{width}_n{n}"
        self.call(
            label, f"{label}|{stride}|{per_pair}|{b is None}|{index.access.key()}|{out.access.key()}",
            lambda k, isa: regions.expert_linear(
                k, layout, kind, stride, per_pair, top, index.access, b is not None, out.access
            ),
            reads, [self.pointer(out)], node,
        )  # fmt: skip

    # ---- everything else ----------------------------------------------------------------------
    def _rowwise(self, op: str, node: Node) -> None:
        space = self._space(node.results[0])
        ins = [_without_row_axis(self.view(v), node) for v in node.inputs()]
        outs = [self.new(r) for r in node.results]
        self._rowwise_call(op, dict(node.attrs), ins, outs, space, node)

    def _rowwise_call(
        self, op: str, attrs: dict[str, Any], ins: list[View], outs: list[View], space: Space, node: Node
    ) -> None:
        slot = self.rows_slot(space)
        accesses = [v.access for v in ins], [v.access for v in outs]
        shape = "x".join(map(str, outs[0].access.shape)) or "1"

        def emit(k: Emitter, isa: Isa) -> None:
            read = [Operand.argument(k, a) for a in accesses[0]]
            written = [Operand.argument(k, a) for a in accesses[1]]
            rowwise.rowwise(k, op, read, written, attrs, k.step(slot))

        key = f"{op}|{attrs}|{slot}|{'|'.join(a.key() for a in accesses[0] + accesses[1])}"
        self.call(
            f"{op}_{shape}", key, emit, [self.pointer(v) for v in ins],
            [self.pointer(v) for v in outs], node,
        )  # fmt: skip

    # ---- the plan -----------------------------------------------------------------------------
    def finish(self) -> Lowered:
        (logits,) = self.graph.outputs
        out = self.view(logits)
        first: dict[Storage, int] = {}
        last: dict[Storage, int] = {out.storage: len(self.calls)}
        for i, call in enumerate(self.calls):
            for s in call.reads | call.writes:
                if isinstance(s, Storage) and s.kind == "buffer":
                    first.setdefault(s, i)
                    last[s] = max(last.get(s, i), i)
        lifetimes = [Lifetime(s, first[s], last[s]) for s in first]
        offsets, sizes = assign_offsets(lifetimes)
        order = list(first)
        number = {s: i for i, s in enumerate(order)}
        barriers = _barriers(self.calls, offsets)
        calls = tuple(
            Call(c.kernel, tuple(_arg(p, number) for p in c.args), barrier, c.origin)
            for c, barrier in zip(self.calls, barriers, strict=True)
        )
        plan = Plan(
            schema=SCHEMA, vocab_size=int(logits.type.shape[1]), max_model_len=self.options.max_model_len,
            query_tokens=self.query_tokens, arena_row_bytes=sizes,
            buffers=tuple(Buffer(s.space or "T", s.row_bytes, offsets[s]) for s in order),
            pages=tuple(self.pages[layer] for layer in sorted(self.pages)), calls=calls,
            logits=number[out.storage],
        )  # fmt: skip
        used = {c.kernel for c in calls}
        return Lowered(plan, {n: k for n, k in self.kernels.items() if n in used}, self.statics)


def _barriers(calls: list[_Call], offsets: dict[Storage, int]) -> list[bool]:
    """Behind which calls all threads must meet: before a call that touches memory which another call
    since the last barrier writes, or writes what one reads. The last call always has one."""
    flags = [False] * len(calls)
    reads: list[Any] = []
    writes: list[Any] = []
    for i, call in enumerate(calls):
        mine_r = [_interval(s, offsets) for s in call.reads]
        mine_w = [_interval(s, offsets) for s in call.writes]
        clash = any(_overlap(a, b) for a in mine_r + mine_w for b in writes) or any(
            _overlap(a, b) for a in mine_w for b in reads
        )
        if clash and i:
            flags[i - 1] = True
            reads, writes = [], []
        reads += mine_r
        writes += mine_w
    flags[-1] = True
    return flags


def _interval(s: Any, offsets: dict[Storage, int]) -> tuple[Any, int, int]:
    if isinstance(s, Storage) and s.kind == "buffer":
        return s.space, offsets[s], offsets[s] + s.row_bytes
    return (s if isinstance(s, tuple) else (s.kind, s.name)), 0, 1


def _overlap(a: tuple[Any, int, int], b: tuple[Any, int, int]) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _arg(p: Pointer, number: dict[Storage, int]) -> Arg:
    target, offset = p
    if isinstance(target, tuple):
        return Arg(target[0], target[1], offset)
    if target.kind == "buffer":
        return Arg("buffer", number[target], offset)
    return Arg(target.kind, target.name, offset)


def _input(name: str) -> Storage:
    return Storage("input", name)


def _matmul_weights(graph: Graph) -> set[Value]:
    """Weights that some matmul reads: these are stored as tiles."""
    found: set[Value] = set()
    for node in graph.nodes:
        if node.op.name in ("linear", "expert_linear"):
            found.update(node.inputs())
        elif node.op.name == "fused" and node.attrs["anchor"] == "linear":
            found.update(v for v in node.inputs() if v.type.rank == 2 and v.type.is_static)
    return found


def _matrix(w: Value) -> tuple[int, int]:
    n, k = (int(d) for d in w.type.shape)
    return n, k


def _halves(body: Graph, linear: Node) -> tuple[Node, Node] | None:
    """The two slices of a gate-and-up matmul, if that is all that is read of it."""
    users = [n for n in body.nodes if linear.result in n.inputs()]
    if len(users) != 2 or any(n.op.name != "slice" for n in users):
        return None
    users.sort(key=lambda n: int(n.attrs["start"]))  # type: ignore[call-overload]
    return users[0], users[1]


def _body_label(body: Graph, skip: Node | None) -> str:
    names = [n.op.name for n in body.nodes if n is not skip and n.op.name not in ("const", "slice")]
    return "_".join(names) or "store"


def _region_key(region: Region) -> str:
    parts = [a.key() if a else "-" for a in region.operands] + [r.key() for r in region.results]
    return f"{body_key(region.body)}|{'|'.join(parts)}|{region.rows_slot}"


def _without_row_axis(view: View, node: Node) -> View:
    """A static operand of shape [1, ...] beside token values: the 1 stands for the tokens."""
    rank = node.results[0].type.rank
    a = view.access
    if a.row == 0 and view.storage.kind == "weight" and len(a.shape) == rank and rank > 0:
        if a.shape[0] != 1:
            raise LoweringError(f"a static operand has a row per token: {print_node_line(node)}")
        return view.moved(Access(a.dtype, 0, a.shape[1:], a.strides[1:]))
    return view
