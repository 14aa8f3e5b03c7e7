"""Final graph → Triton kernels and what is launched in which order.

Walks the graph once. Shape ops become views; every other node (or fused region) becomes one or two calls
of kernels that depend on shapes and strides only, so that layers share kernels.
"""

from __future__ import annotations

from collections.abc import Callable

from rusteeze.codegen.gpu import expressions, lower_rowwise
from rusteeze.codegen.gpu.best_tokens import lower_best_tokens
from rusteeze.codegen.gpu.lower_attention import lower_attention, lower_rope, query_tokens
from rusteeze.codegen.gpu.lower_blocks import lower_block_linear
from rusteeze.codegen.gpu.lower_experts import lower_expert_linear
from rusteeze.codegen.gpu.lower_linear import lower_linear
from rusteeze.codegen.gpu.lower_lookups import lower_embedding
from rusteeze.codegen.gpu.lower_shapes import broadcast_to, permute, reshape, slice_axis
from rusteeze.codegen.gpu.lowering import GpuOptions, Lowering, LoweringError
from rusteeze.codegen.gpu.regions import lower_norm, lower_pointwise
from rusteeze.ir import Graph, Node, print_node_line

ANCHORS: dict[str, Callable[[Lowering, Node], None]] = {
    "linear": lower_linear, "norm": lower_norm, "pointwise": lower_pointwise, "attention": lower_attention,
}  # fmt: skip


def _lower_fused(ctx: Lowering, node: Node) -> None:
    ANCHORS[str(node.attrs["anchor"])](ctx, node)


LOWERINGS: dict[str, Callable[[Lowering, Node], None]] = {
    **dict.fromkeys(lower_rowwise.OPS, lower_rowwise.lower_rowwise),
    **dict.fromkeys(expressions.OPS, lower_pointwise),
    "reshape": reshape,
    "permute": permute,
    "slice": slice_axis,
    "broadcast_to": broadcast_to,
    "fused": _lower_fused,
    "linear": lower_linear,
    "rms_norm": lower_norm,
    "layer_norm": lower_norm,
    "attention": lower_attention,
    "rope": lower_rope,
    "embedding": lower_embedding,
    "expert_linear": lower_expert_linear,
    "block_linear": lower_block_linear,
}


def lower_for_gpu(graph: Graph, options: GpuOptions) -> Lowering:
    """Everything lowered; gpu/plan.py makes the plan of it. LoweringError when a node has no kernel."""
    ctx = Lowering(graph, options, query_tokens(graph))
    for node in graph.nodes:
        if all(r in ctx.static for r in node.results):
            continue
        if node.op.name not in LOWERINGS:
            raise LoweringError(f"no GPU kernel for {print_node_line(node)} ({node.origin})")
        LOWERINGS[node.op.name](ctx, node)
    lower_best_tokens(ctx)
    return ctx


__all__ = ["GpuOptions", "LoweringError", "lower_for_gpu"]
