"""Lower attention: one call that fills the cache, one that reads it; both rotate on the way if need be."""

from __future__ import annotations

import math

from rusteeze.artifact.contract import Pages
from rusteeze.artifact.cuda_contract import Count
from rusteeze.codegen.access import Access
from rusteeze.codegen.bodies import attention_of, position_table, rotated_by_reader
from rusteeze.codegen.gpu.attention import AttentionKernel, attend
from rusteeze.codegen.gpu.attention_shape import (
    LEAST_ROWS,
    PAGE,
    SPLIT,
    SPLIT_TOKENS,
    AttentionShape,
)
from rusteeze.codegen.gpu.elements import STORED
from rusteeze.codegen.gpu.lowering import (
    Lowering,
    LoweringError,
    PendingChoice,
    PendingLaunch,
    rows_of,
)
from rusteeze.codegen.gpu.rope import BoundHeads, Heads, Rotation
from rusteeze.codegen.gpu.source import (
    COUNTER_BYTES,
    Options,
    PageSet,
    Pointer,
    Source,
    Workspace,
    pointer_to,
    power_of_two,
    warps_for,
)
from rusteeze.codegen.views import View
from rusteeze.ir import Graph, Node, Value, print_node_line


def attention_shape(node: Node, cache_dtype: str) -> AttentionShape:
    q, key, value, sinks = node.operands
    assert q is not None
    assert key is not None
    heads, kv_heads = int(q.type.shape[1]), int(key.type.shape[1])
    latent = value is None
    if latent and kv_heads != 1:
        raise LoweringError(f"values that are part of {kv_heads} key heads have no kernel: {print_node_line(node)}")
    value_width = int(node.attrs["value_width"]) if value is None else int(value.type.shape[2])  # type: ignore[call-overload]
    return AttentionShape(
        heads=heads, kv_heads=heads // math.gcd(heads, LEAST_ROWS) if latent else kv_heads,
        width=int(q.type.shape[2]), value_width=value_width, latent=latent, scale=float(node.attrs["scale"]),  # type: ignore[arg-type]
        window=int(node.attrs["window"]), softcap=float(node.attrs["softcap"]),  # type: ignore[arg-type,call-overload]
        sinks=sinks is not None, cache=cache_dtype,
    )  # fmt: skip


def query_tokens(graph: Graph) -> int:
    """Tokens of a query tile: one number for the whole plan, as all layers read the same tiles."""
    nodes = [n for n in map(attention_of, graph.nodes) if n is not None]
    return min((attention_shape(n, "f32").query_tokens for n in nodes), default=1)


def lower_attention(ctx: Lowering, node: Node) -> None:
    """An attention, or a region of one whose result is only rounded."""
    attention = attention_of(node)
    assert attention is not None
    bound: dict[Value, Value] = {}
    if node.body is not None:
        bound = dict(zip(node.body.inputs, node.inputs(), strict=True))
    q, key, value, sinks = (bound.get(v, v) if v is not None else None for v in attention.operands)
    assert q is not None
    assert key is not None
    shape = attention_shape(attention, ctx.options.cache_dtype)
    layer = int(attention.attrs["layer"])  # type: ignore[call-overload]
    ctx.pages[layer] = Pages(layer, shape.key_page_bytes, shape.value_page_bytes)
    _write_cache(ctx, node, shape, layer, Heads(*_source(ctx, key)), ctx.view(value) if value is not None else None)
    view = ctx.new(node.result)
    if len(view.access.shape) == 1:  # heads side by side
        a = view.access
        view = view.moved(Access(a.dtype, a.row, (shape.heads, shape.value_width), (shape.value_width, 1)))
    queries = Heads(*_source(ctx, q))
    choices = []
    for separate in (True, False):
        kernel = AttentionKernel(
            shape, ctx.query_tokens, separate, -(-ctx.options.max_model_len // SPLIT), view.access
        )
        launch = _attention(ctx, kernel, layer, queries, ctx.view(sinks) if sinks is not None else None, view)
        choices.append(PendingChoice((launch,), SPLIT_TOKENS if separate else 0))
    if 4 * SPLIT_TOKENS * shape.kv_heads > COUNTER_BYTES:
        raise LoweringError(f"{shape.kv_heads} key heads need more counters: {print_node_line(attention)}")
    ctx.call(node, choices, "tokens")


def _attention(
    ctx: Lowering, a: AttentionKernel, layer: int, queries: Heads, sinks: View | None, out: View
) -> PendingLaunch:
    s = a.shape
    label = f"attention_{s.label()}_q{a.query_tokens}" + ("_parts" if a.separate else "")
    about = [f"attention of {s}", f"flops per pair of tokens {2 * s.heads * (s.width + s.value_width)}"]
    k = Source(label, Options(s.num_warps, 2), about)
    k.line(f"num_tiles = {ctx.counts(k, 'tiles')}")
    bound = BoundHeads(k, "queries", queries, Pointer(ctx.input("positions")))
    if sinks is not None:
        k.view("sinks", sinks)
    k.pointer("tiles", "i32", Pointer(ctx.input("tiles")))
    k.pointer("block_tables", "i32", Pointer(ctx.input("block_tables")))
    k.pointer("key_pages", s.cache, Pointer(PageSet("key_pages", layer)))
    if not s.latent:
        k.pointer("value_pages", s.cache, Pointer(PageSet("value_pages", layer)))
    k.number("table_stride", Count("blocks"))
    k.view("out", out)
    if a.separate:
        k.pointer("counters", "i32", Pointer(Workspace(0)))
        k.pointer("workspace", "f32", Pointer(Workspace(COUNTER_BYTES)))
        ctx.reserve(COUNTER_BYTES + 4 * SPLIT_TOKENS * s.heads * a.most_parts * a.part_floats)
    attend(k, a, bound)
    parts = Count("context", SPLIT) if a.separate else Count()
    return ctx.launch(k, [Count("tiles"), Count(times=s.kv_heads), parts])


def _write_cache(
    ctx: Lowering, node: Node, shape: AttentionShape, layer: int, keys: Heads, values: View | None
) -> None:
    """Keys, rotated if need be, and values of the step's tokens go into their slots: a program per token."""
    cached = 1 if shape.latent else shape.kv_heads
    heads, width = power_of_two(cached), power_of_two(max(shape.width, shape.value_width))
    label = f"write_cache_h{cached}_d{shape.width}x{shape.value_width}_{shape.cache}"
    k = Source(label, Options(warps_for(heads * width)), [f"keys and values of a token: {shape}"])
    count = ctx.counts(k, "T")
    source = BoundHeads(k, "keys", keys, Pointer(ctx.input("positions")))
    stored = [(source, "key_pages", shape.width)]
    if values is not None:
        value_source = BoundHeads(k, "values", Heads(values, None), Pointer(ctx.input("positions")))
        stored.append((value_source, "value_pages", shape.value_width))
    k.pointer("slot_mapping", "i32", Pointer(ctx.input("slot_mapping")))
    k.pointer("key_pages", shape.cache, Pointer(PageSet("key_pages", layer)))
    if values is not None:
        k.pointer("value_pages", shape.cache, Pointer(PageSet("value_pages", layer)))
    k.line("row = tl.program_id(0)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    k.line("slot = tl.load(slot_mapping + row)")
    k.line(f"head = tl.arange(0, {heads})[:, None]")
    k.line(f"page = (slot // {PAGE}).to(tl.int64)")
    k.line(f"at = (page * {cached} + head) * {PAGE} + slot % {PAGE}")
    for bound, pages, size in stored:
        d = k.let(f"tl.arange(0, {power_of_two(size)})[None, :]")
        mask = k.let(f"(head < {cached}) & ({d} < {size})")
        value = bound.load("row", "head", d, "", mask)
        k.line(f"tl.store({pages} + at * {size} + {d}, {value}.to({STORED[shape.cache]}), mask={mask})")
    ctx.call_one(node, k, [rows_of("T")])


def _source(ctx: Lowering, x: Value) -> tuple[View, Rotation | None]:
    """Heads that the reader rotates itself, if it may."""
    if x.node is None or not rotated_by_reader(ctx.uses, x.node):
        return ctx.view(x), None
    return ctx.view(next(x.node.inputs())), rotation_of(ctx, x.node)


def rotation_of(ctx: Lowering, node: Node) -> Rotation:
    tables = []
    for v in node.operands[1:]:
        table = position_table(v, ctx.static)
        if table is None:
            raise LoweringError(f"a rope without a table by position: {print_node_line(node)}")
        tables.append(ctx.view(table))
    width = int(node.attrs["width"])  # type: ignore[call-overload]
    return Rotation(str(node.attrs["style"]), width, bool(node.attrs["at_end"]), tables[0], tables[1])


def lower_rope(ctx: Lowering, node: Node) -> None:
    """A rope that no attention applies: a program per token."""
    if rotated_by_reader(ctx.uses, node):
        return
    (source, *_) = node.inputs()
    heads = Heads(ctx.view(source), rotation_of(ctx, node))
    count_heads, width = heads.view.access.shape
    out = ctx.new(node.result)
    k = Source(f"rope_{count_heads}x{width}", Options(), [print_node_line(node)])
    space = ctx.space(node.result)
    if space != "T":
        raise LoweringError(f"a rope of chosen rows has no kernel: {print_node_line(node)}")
    count = ctx.counts(k, space)
    bound = BoundHeads(k, "x", heads, Pointer(ctx.input("positions")))
    target = k.pointer("out", "f32", pointer_to(out))
    k.line("row = tl.program_id(0)")
    with k.block(f"if row >= {count}:"):
        k.line("return")
    k.line(f"head = tl.arange(0, {power_of_two(count_heads)})[:, None]")
    k.line(f"d = tl.arange(0, {power_of_two(width)})[None, :]")
    k.line(f"real = (head < {count_heads}) & (d < {width})")
    value = bound.load("row", "head", "d", "", "real")
    a = out.access
    k.line(f"tl.store({target} + row * {a.row} + head * {a.strides[0]} + d * {a.strides[1]}, {value}, mask=real)")
    ctx.call_one(node, k, [rows_of(space)])
