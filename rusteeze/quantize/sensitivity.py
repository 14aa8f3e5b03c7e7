"""How much a model's predictions would suffer from fewer bits, site by site.

To second order the divergence of the predictions is half the squared change of an output times the squared
slope of the log-likelihood there, slopes being those of tokens that the model itself draws (the diagonal
of the Fisher information). Changes are those of rounding to nearest; better methods shrink them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from rusteeze.ir import Graph, Node, Value
from rusteeze.quantize.find_sites import GraphSite, weight_of
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.results import Uniform
from rusteeze.quantize.rtn import round_to_nearest
from rusteeze.quantize.torch_ops import evaluate

Tensor = torch.Tensor
Report = Callable[[str, float], None]
MOST_WINDOWS = 4


def sensitivities(
    graph: Graph, sites: Sequence[GraphSite], spec: GridSpec, widths: Sequence[int],
    windows: Sequence[Tensor], load: Callable[[str], Tensor], report: Report,
) -> Tensor:  # fmt: skip
    """Estimated divergence per token, f64 [sites, widths]. Holds the whole model in float32."""
    weights = {v: load(v.name) for v in graph.weights.values()}
    costs = torch.zeros(len(sites), len(widths), dtype=torch.float64)
    chosen = windows[:: -(-len(windows) // MOST_WINDOWS)]
    generator = torch.Generator().manual_seed(0)
    for done, ids in enumerate(chosen):
        report("estimating what each width costs", done / len(chosen))
        values, slopes = _slopes(graph, sites, weights, ids, generator)
        with torch.inference_mode():
            for i, site in enumerate(sites):
                for node in site.nodes:
                    costs[i] += _costs(node, values, weights, slopes[node.result], spec, widths)
    return costs / sum(map(len, chosen))


def _slopes(
    graph: Graph, sites: Sequence[GraphSite], weights: Mapping[Value, Tensor], ids: Tensor, generator: torch.Generator
) -> tuple[dict[Value, Tensor], dict[Value, Tensor]]:  # fmt: skip
    """All values of one window, and the slope of the log-likelihood of drawn tokens at the sites' results."""
    count = torch.arange(len(ids), dtype=torch.int32)
    values = dict(zip(graph.inputs, (ids, count, count), strict=True))
    for node in graph.nodes:
        results = evaluate(node, [None if v is None else weights.get(v, values.get(v)) for v in node.operands])
        if node.op.name == "embedding":
            results = tuple(r.detach().requires_grad_() for r in results)  # so that slopes are kept behind it
        values.update(zip(node.results, results, strict=True))
    (logits,) = (values[v] for v in graph.outputs)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    loss = F.cross_entropy(logits, drawn, reduction="sum")
    wanted = [node.result for site in sites for node in site.nodes]
    found = torch.autograd.grad(loss, [values[v] for v in wanted])
    return {v: x.detach() for v, x in values.items()}, dict(zip(wanted, found, strict=True))


def _costs(
    node: Node, values: Mapping[Value, Tensor], weights: Mapping[Value, Tensor], slope: Tensor,
    spec: GridSpec, widths: Sequence[int],
) -> Tensor:  # fmt: skip
    weight = weight_of(node)
    costs = []
    for bits in widths:
        change = _rounded(weights[weight], replace(spec, bits=bits)) - weights[weight]
        operands = [change if v is weight else None if v is None else values.get(v) for v in node.operands]
        operands[-1] = None  # the bias does not change
        (moved,) = evaluate(node, operands)
        costs.append(float((moved * slope).square().sum(dtype=torch.float64)) / 2)
    return torch.tensor(costs, dtype=torch.float64)


def _rounded(weight: Tensor, spec: GridSpec) -> Tensor:
    codes: Uniform = round_to_nearest(weight.reshape(-1, weight.shape[-1]), spec)
    return codes.to_f32().reshape(weight.shape)
