"""What holds for every graph: text round trip, and every pass keeps meaning and form."""

from __future__ import annotations

import pytest
from drawn_graphs import graphs
from hypothesis import HealthCheck, given, settings

from rusteeze.ir import Graph, parse, print_graph, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.canonicalize import Canonicalize
from rusteeze.passes.fuse import Fuse
from rusteeze.passes.fuse_linears import FuseLinears
from rusteeze.passes.pass_base import Pass
from rusteeze.passes.pipeline import fusing, lowering, raising, rounding, run_passes
from rusteeze.passes.quantize_activations import QuantizeActivations
from rusteeze.passes.raise_activations import RaiseActivations
from rusteeze.passes.raise_norms import RaiseNorms
from rusteeze.passes.raise_rope import RaiseRope
from rusteeze.passes.share_key_heads import ShareKeyHeads
from rusteeze.passes.sink_gather_rows import SinkGatherRows

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
PASSES: list[Pass] = [
    Canonicalize(), RaiseRope(), RaiseNorms(), RaiseActivations(), ShareKeyHeads(),
    SinkGatherRows(), SinkGatherRows(products=False), FuseLinears(), Fuse("linear"), Fuse("norm"),
    Fuse("pointwise"),
]  # fmt: skip
TOLERANCE = 1e-3


def same(a: Graph, b: Graph) -> bool:
    """To float32 accuracy relative to each row. A row of small differences of large numbers is noise."""
    return compare_graphs(a, b) < TOLERANCE


@FEW
@given(graphs())
def test_text_round_trip(graph):
    verify(graph)
    assert parse(print_graph(graph)) == graph
    assert graph.copy() == graph


@pytest.mark.parametrize("p", PASSES, ids=repr)
@FEW
@given(graph=graphs())
def test_a_pass_keeps_meaning_and_form(p, graph):
    before = graph.copy()
    p.run(graph)
    verify(graph)
    assert same(before, graph)
    assert parse(print_graph(graph)) == graph


@pytest.mark.parametrize("p", PASSES, ids=repr)
@FEW
@given(graph=graphs(8))
def test_a_pass_comes_to_rest(p, graph):
    p.run(graph)
    once = print_graph(graph)
    p.run(graph)
    assert print_graph(graph) == once


@FEW
@given(graphs(20))
def test_the_whole_pipeline_keeps_meaning(graph):
    before = graph.copy()
    run_passes(graph, raising() + lowering(), verified=True)
    assert same(before, graph)
    run_passes(graph, rounding("int8", "int8"))
    rounded = graph.copy()
    run_passes(graph, fusing(), verified=True)
    assert compare_graphs(rounded, graph) == 0


@FEW
@given(graphs())
def test_rounding_is_the_only_pass_that_changes_results(graph):
    """... and only in front of products with integer weights."""
    before = graph.copy()
    result = QuantizeActivations().run(graph)
    verify(graph)
    assert (result.matches > 0) == any(n.op.name == "quantize" for n in graph.nodes)
    if not result.matches:
        assert graph == before
