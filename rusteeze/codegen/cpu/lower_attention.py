"""Lower attention: one call that fills the cache (rotating keys on the way), one that reads it."""

from __future__ import annotations

from rusteeze.artifact.contract import Pages
from rusteeze.codegen.cpu import rope
from rusteeze.codegen.cpu.attention import attend
from rusteeze.codegen.cpu.attention_cache import write_cache
from rusteeze.codegen.cpu.attention_shape import AttentionShape
from rusteeze.codegen.cpu.lowering import Lowering, LoweringError, PageSet, Pointer, at
from rusteeze.codegen.cpu.rope import Rotation
from rusteeze.ir import Graph, Node, Value, print_node_line


def attention_shape(node: Node, cache_dtype: str) -> AttentionShape:
    q, key, value, sinks = node.operands
    assert q is not None
    assert key is not None
    assert value is not None
    width = int(q.type.shape[2])
    return AttentionShape(
        heads=int(q.type.shape[1]), kv_heads=int(key.type.shape[1]), width=width,
        value_width=int(value.type.shape[2]), scale=float(node.attrs["scale"]),  # type: ignore[arg-type]
        window=int(node.attrs["window"]), softcap=float(node.attrs["softcap"]),  # type: ignore[arg-type,call-overload]
        sinks=sinks is not None,
        # pairs of dims share a word of a bf16 page
        cache=cache_dtype if width % 2 == 0 else "f32",
    )  # fmt: skip


def query_tokens(graph: Graph) -> int:
    """Tokens of a query tile: one number for the whole plan, as all layers read the same tiles."""
    nodes = [n for n in graph.nodes if n.op.name == "attention"]
    return min((attention_shape(n, "f32").query_tokens for n in nodes), default=1)


def lower_attention(ctx: Lowering, node: Node) -> None:
    shape = attention_shape(node, ctx.options.cache_dtype)
    layer = int(node.attrs["layer"])  # type: ignore[call-overload]
    ctx.pages[layer] = Pages(layer, shape.key_page_bytes, shape.value_page_bytes)
    pages = [Pointer(PageSet("key_pages", layer)), Pointer(PageSet("value_pages", layer))]
    _write_cache(ctx, node, shape, pages)
    q, _, _, sinks = node.operands
    assert q is not None
    query = ctx.view(q)
    reads = [at(query)]
    if sinks is not None:
        reads.append(at(ctx.view(sinks)))
    reads += [Pointer(ctx.input("tiles")), Pointer(ctx.input("block_tables")), *pages]
    out = ctx.new(node.result)
    tokens, out_row = ctx.query_tokens, out.access.row
    ctx.call(
        f"attention_{shape.label()}_q{tokens}", f"{query.access.key()}|{shape}|{out_row}",
        lambda k, _isa: attend(k, shape, query.access, tokens, out_row), reads, [at(out)], node,
    )  # fmt: skip


def _write_cache(ctx: Lowering, node: Node, shape: AttentionShape, pages: list[Pointer]) -> None:
    _, key, value, _ = node.operands
    assert key is not None
    assert value is not None
    rotation, source, tables = None, key, []
    if key.node is not None and rotated_by_writer(ctx, key.node):
        rotation, tables = _rotation(ctx, key.node)
        (source, *_) = key.node.inputs()
    keys, values = ctx.view(source), ctx.view(value)
    reads = [at(keys), *tables, at(values), Pointer(ctx.input("slot_mapping"))]
    label = f"write_cache_h{shape.kv_heads}_d{shape.width}x{shape.value_width}_{shape.cache}"
    if rotation:
        label += f"_rope_{rotation.label()}"
    a, b = keys.access, values.access
    ctx.call(
        label, f"{a.key()}|{b.key()}|{rotation}",
        lambda k, _isa: write_cache(k, shape, a, b, rotation), reads, pages, node,
    )  # fmt: skip


def rotated_by_writer(ctx: Lowering, node: Node) -> bool:
    """A rope whose only reader is a cache is applied while writing."""
    users = ctx.uses.get(node.result, []) if node.op.name == "rope" else []
    return len(users) == 1 and users[0].op.name == "attention" and users[0].operands[1] is node.result


def lower_rope(ctx: Lowering, node: Node) -> None:
    if rotated_by_writer(ctx, node):
        return
    (source, *_) = node.inputs()
    rotation, tables = _rotation(ctx, node)
    view, out = ctx.view(source), ctx.new(node.result)
    label = f"rope_{rotation.label()}_{'x'.join(map(str, view.access.shape))}"
    ctx.call(
        label, f"{view.access.key()}|{out.access.key()}",
        lambda k, _isa: rope.rope(k, view.access, rotation, out.access), [at(view), *tables],
        [at(out)], node,
    )  # fmt: skip


def _rotation(ctx: Lowering, node: Node) -> tuple[Rotation, list[Pointer]]:
    """The rotation and its arguments: positions and the two tables."""
    args = [Pointer(ctx.input("positions"))]
    for v in node.operands[1:]:
        table = position_table(ctx, v)
        if table is None:
            raise LoweringError(f"a rope without a table by position: {print_node_line(node)}")
        args.append(at(ctx.view(table)))
    width = int(node.attrs["width"])  # type: ignore[call-overload]
    return Rotation(str(node.attrs["style"]), width, bool(node.attrs["at_end"])), args


def position_table(ctx: Lowering, value: Value | None) -> Value | None:
    """The static table of which ``value`` is the rows at the tokens' positions."""
    node = value.node if value is not None else None
    if node is None or node.op.name != "embedding":
        return None
    ids, table = node.operands
    assert ids is not None
    by_position = ids.node is None and ids.name == "positions"
    return table if by_position and table in ctx.static else None
