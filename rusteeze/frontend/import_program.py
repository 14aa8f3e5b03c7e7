"""An exported program as a Graph: walks what the output depends on and imports it call by call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from rusteeze.frontend import aten_lookup, aten_math, aten_shape  # noqa: F401  (fill the table)
from rusteeze.frontend.aten import Importer, target_name
from rusteeze.frontend.aten_write import is_write, owner, run_empty, run_write
from rusteeze.frontend.errors import AttentionCountMismatch
from rusteeze.frontend.sources import Sources
from rusteeze.ir import Graph, verify


def import_program(
    program: ExportedProgram, module: nn.Module, *, num_layers: int, max_model_len: int,
    checkpoint: Mapping[str, Any], tied: Mapping[str, str],
) -> tuple[Graph, dict[str, np.ndarray]]:  # fmt: skip
    """The graph of ``program`` and the values of its weights that ``checkpoint`` (by name) does not hold.

    ``module`` is what was exported, ``tied`` maps further names of parameters to their first one.
    UnsupportedOp or AttentionCountMismatch when the graph would not mean the same."""
    live = live_calls(program.graph)
    _check_attention(live, num_layers)
    graph = Graph("main")
    sources = Sources(program, module, graph, tied, checkpoint)
    importer = Importer(
        graph, sources.symbols, sources.by_placeholder, sources.literals, max_model_len
    )
    for node in live:
        _import_call(importer, node)
    (output,) = next(n for n in program.graph.nodes if n.op == "output").args[0]
    graph.outputs = [importer.value(output)]
    graph.eliminate_dead_code()
    verify(graph)
    return graph, {k: v for k, v in sources.constants.items() if k in graph.weights}


def live_calls(graph: fx.Graph) -> list[fx.Node]:
    """The calls that the output depends on, in order; a write is live when later calls read its memory."""
    live: set[fx.Node] = set()
    owners: set[fx.Node] = set()  # of the memory in which live tensors lie
    for node in reversed(graph.nodes):
        if is_write(node) and owner(node) in owners:
            new = {node, owner(node), *(n for n in node.all_input_nodes if n is not node.args[0])}
        elif node.op == "output" or node in live:
            new = {node, *node.all_input_nodes}
        else:
            continue
        live |= new
        owners |= {owner(n) for n in new}
    return [n for n in graph.nodes if n in live and n.op == "call_function"]


def _check_attention(calls: Iterable[fx.Node], num_layers: int) -> None:
    layers = [n.args[4] for n in calls if target_name(n) == "rusteeze.attention.default"]
    if sorted(map(str, layers)) != sorted(map(str, range(num_layers))):
        raise AttentionCountMismatch(
            f"{len(layers)} attention calls were captured for {num_layers} layers;"
            " the model attends outside transformers' interface: choose another architecture"
        )


def _import_call(importer: Importer, node: fx.Node) -> None:
    if target_name(node) == "new_empty.default":
        run_empty(importer, node)
    elif is_write(node):
        run_write(importer, node)
    elif _is_tensor(node):
        importer.run(node)


def _is_tensor(node: fx.Node) -> bool:
    """Whether a call computes tensors, not sizes."""
    value = node.meta.get("val")
    return isinstance(value[0] if isinstance(value, (tuple, list)) else value, torch.Tensor)
