"""Checks that the tests of all passes share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rusteeze.ir import parse, print_graph, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.passes.pass_base import Pass, PassResult

Check = Callable[[Pass, str, str], PassResult]


@pytest.fixture
def check() -> Check:
    """Run a pass on the first text; the second must come out, well formed and with the same meaning."""

    def run(p: Pass, before: str, after: str) -> PassResult:
        graph, old = parse(before), parse(before)
        result = p.run(graph)
        verify(graph)
        assert print_graph(graph) == print_graph(parse(after))
        assert compare_graphs(old, graph) < 1e-4
        return result

    return run
