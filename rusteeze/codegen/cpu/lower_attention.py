"""Lower attention: one call that fills the cache, one that reads it; both rotate on the way if need be."""

from __future__ import annotations

from rusteeze.artifact.contract import Pages
from rusteeze.codegen.bodies import attention_of, position_table, rotated_by_reader
from rusteeze.codegen.cpu import rope
from rusteeze.codegen.cpu.attention import AttentionOutput, attend
from rusteeze.codegen.cpu.attention_cache import write_cache
from rusteeze.codegen.cpu.attention_shape import AttentionShape
from rusteeze.codegen.cpu.emit import Emitter
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.latent_attention import attend_latents
from rusteeze.codegen.cpu.latent_cache import write_latents
from rusteeze.codegen.cpu.latent_shape import LatentShape
from rusteeze.codegen.cpu.lowering import Lowering, LoweringError, PageSet, Pointer, at, rounding_of
from rusteeze.codegen.cpu.rope import Rotation
from rusteeze.codegen.views import View
from rusteeze.ir import Graph, Node, Value, print_node_line


def attention_shape(node: Node) -> AttentionShape | LatentShape:
    q, key, value, sinks = node.operands
    assert q is not None
    assert key is not None
    if value is None:
        return _latent_shape(node)
    return AttentionShape(
        heads=int(q.type.shape[1]), kv_heads=int(key.type.shape[1]), width=int(q.type.shape[2]),
        value_width=int(value.type.shape[2]), scale=float(node.attrs["scale"]),  # type: ignore[arg-type]
        window=int(node.attrs["window"]), softcap=float(node.attrs["softcap"]),  # type: ignore[arg-type,call-overload]
        sinks=sinks is not None, cache=str(node.attrs["cache"]),
    )  # fmt: skip


def _latent_shape(node: Node) -> LatentShape:
    q, key, _, sinks = node.operands
    assert q is not None
    assert key is not None
    if key.type.shape[1] != 1 or sinks is not None or node.attrs["window"] or node.attrs["softcap"]:
        known = "one key head, without window, softcap and sinks"
        raise LoweringError(f"values that are part of keys are only read of {known}: {print_node_line(node)}")
    return LatentShape(
        heads=int(q.type.shape[1]), width=int(q.type.shape[2]),
        value_width=int(node.attrs["value_width"]), scale=float(node.attrs["scale"]),  # type: ignore[arg-type, call-overload]
        cache=str(node.attrs["cache"]),
    )  # fmt: skip


def query_tokens(graph: Graph) -> int:
    """Tokens of a query tile: one number for the whole plan, as all layers read the same tiles."""
    nodes = [n for n in map(attention_of, graph.nodes) if n is not None]
    return min((attention_shape(n).query_tokens for n in nodes), default=1)


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
    shape = attention_shape(attention)
    layer = int(attention.attrs["layer"])  # type: ignore[call-overload]
    pages = [Pointer(PageSet("key_pages", layer))]
    if isinstance(shape, LatentShape):
        ctx.pages[layer] = Pages(layer, shape.page_bytes, 0)
        _write_latents(ctx, node, key, shape, pages)
    else:
        assert value is not None
        ctx.pages[layer] = Pages(layer, shape.key_page_bytes, shape.value_page_bytes)
        pages.append(Pointer(PageSet("value_pages", layer)))
        _write_cache(ctx, node, key, value, shape, pages)
    rotation, query, reads = _rotated_source(ctx, q)
    if sinks is not None:
        reads.append(at(ctx.view(sinks)))
    reads += [Pointer(ctx.input("tiles")), Pointer(ctx.input("block_tables")), *pages]
    (result,) = node.results
    if node.body is None:
        out = ctx.new(result)
        output, writes = AttentionOutput(out.access.row), [at(out)]
    else:
        rounded = ctx.new_rounded(result, rounding_of(node.body.outputs[0]))
        output, writes = AttentionOutput(0, rounded.kind), [Pointer(s) for s in rounded.storages]
    tokens = ctx.query_tokens
    label = f"attention_{shape.label()}_q{tokens}{_suffix(rotation)}"

    def emit(k: Emitter, _isa: Isa) -> None:
        if isinstance(shape, LatentShape):
            attend_latents(k, shape, query.access, rotation, output)
        else:
            attend(k, shape, query.access, rotation, tokens, output)

    ctx.call(
        f"{label}_{output.kind}" if output.kind else label,
        f"{query.access.key()}|{shape}|{rotation}|{output}", emit, reads, writes, node,
    )  # fmt: skip


def _write_cache(
    ctx: Lowering, node: Node, key: Value, value: Value, shape: AttentionShape, pages: list[Pointer]
) -> None:
    rotation, keys, reads = _rotated_source(ctx, key)
    values = ctx.view(value)
    reads += [at(values), Pointer(ctx.input("slot_mapping"))]
    label = f"write_cache_h{shape.kv_heads}_d{shape.width}x{shape.value_width}_{shape.cache}"
    a, b = keys.access, values.access
    ctx.call(
        label + _suffix(rotation), f"{a.key()}|{b.key()}|{rotation}",
        lambda k, _isa: write_cache(k, shape, a, b, rotation), reads, pages, node,
    )  # fmt: skip


def _write_latents(
    ctx: Lowering, node: Node, key: Value, shape: LatentShape, pages: list[Pointer]
) -> None:
    rotation, keys, reads = _rotated_source(ctx, key)
    reads.append(Pointer(ctx.input("slot_mapping")))
    ctx.call(
        f"write_latents_d{shape.width}_{shape.cache}{_suffix(rotation)}",
        f"{keys.access.key()}|{shape}|{rotation}",
        lambda k, _isa: write_latents(k, shape, keys.access, rotation), reads, pages, node,
    )  # fmt: skip


def _suffix(rotation: Rotation | None) -> str:
    return f"_rope_{rotation.label()}" if rotation else ""


def _rotated_source(ctx: Lowering, x: Value) -> tuple[Rotation | None, View, list[Pointer]]:
    """Heads that the reader rotates itself, if it may: the rotation, what is read, its arguments."""
    if x.node is None or not rotated_by_reader(ctx.uses, x.node):
        view = ctx.view(x)
        return None, view, [at(view)]
    rotation, tables = _rotation(ctx, x.node)
    view = ctx.view(next(x.node.inputs()))
    return rotation, view, [at(view), *tables]


def lower_rope(ctx: Lowering, node: Node) -> None:
    if rotated_by_reader(ctx.uses, node):
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
        table = position_table(v, ctx.static)
        if table is None:
            raise LoweringError(f"a rope without a table by position: {print_node_line(node)}")
        args.append(at(ctx.view(table)))
    width = int(node.attrs["width"])  # type: ignore[call-overload]
    return Rotation(str(node.attrs["style"]), width, bool(node.attrs["at_end"])), args
