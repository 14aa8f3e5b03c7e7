"""Final graph → kernels and a plan.

Walks the graph once. Shape ops become views; every other node (or fused region) becomes one or two
calls of kernels that depend on shapes and strides only, so that layers share kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rusteeze.artifact.contract import Plan
from rusteeze.codegen.cpu import rowwise, vector_math
from rusteeze.codegen.cpu.best_tokens import lower_best_tokens
from rusteeze.codegen.cpu.lower_attention import lower_attention, lower_rope, query_tokens
from rusteeze.codegen.cpu.lower_blocks import lower_block_linear
from rusteeze.codegen.cpu.lower_lookups import lower_embedding, lower_expert_linear
from rusteeze.codegen.cpu.lower_regions import (
    lower_fused,
    lower_linear,
    lower_norm,
    lower_pointwise,
)
from rusteeze.codegen.cpu.lower_rowwise import lower_rowwise
from rusteeze.codegen.cpu.lower_shapes import broadcast_to, permute, reshape, slice_axis
from rusteeze.codegen.cpu.lowering import Kernel, Lowering, LoweringError, LoweringOptions
from rusteeze.codegen.cpu.plan_calls import make_plan
from rusteeze.codegen.statics import Statics
from rusteeze.ir import Graph, Node, print_node_line

LOWERINGS: dict[str, Callable[[Lowering, Node], None]] = {
    **dict.fromkeys(rowwise.OPS, lower_rowwise),
    **dict.fromkeys(vector_math.OPS, lower_pointwise),
    "reshape": reshape,
    "permute": permute,
    "slice": slice_axis,
    "broadcast_to": broadcast_to,
    "fused": lower_fused,
    "linear": lower_linear,
    "block_linear": lower_block_linear,
    "rms_norm": lower_norm,
    "layer_norm": lower_norm,
    "quantize": lower_pointwise,
    "attention": lower_attention,
    "rope": lower_rope,
    "embedding": lower_embedding,
    "expert_linear": lower_expert_linear,
}


@dataclass(frozen=True)
class Lowered:
    """A plan, the kernels that it calls and the weights that it reads; and with which options."""

    plan: Plan
    kernels: dict[str, Kernel]
    statics: Statics
    options: LoweringOptions


def lower(graph: Graph, options: LoweringOptions) -> Lowered:
    """LoweringError when a node has no kernel."""
    ctx = Lowering(graph, options, query_tokens(graph))
    for node in graph.nodes:
        if all(r in ctx.static for r in node.results):
            continue
        if node.op.name not in LOWERINGS:
            raise LoweringError(f"no CPU kernel for {print_node_line(node)} ({node.origin})")
        LOWERINGS[node.op.name](ctx, node)
    lower_best_tokens(ctx)
    return Lowered(make_plan(ctx), ctx.kernels, ctx.statics, options)


__all__ = ["Lowered", "LoweringError", "LoweringOptions", "lower"]
