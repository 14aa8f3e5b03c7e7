"""The kernel behind the last product finds what numpy's argmax finds, ties and NaN included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_runner import GraphRunner, dense, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph
from rusteeze.ir.types import TOKENS, DType, TensorType

ROWS = 40


def looked_up(table: np.ndarray, isa: Isa, folder: Path) -> GraphRunner:
    """A graph whose logits are rows of a table."""
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    weight = graph.weight("table", TensorType(DType.f32, table.shape), "f32")
    graph.outputs = [graph.add("embedding", ids, weight)]
    return GraphRunner(graph, {"table": dense(table)}, isa, folder)


def drawn(width: int) -> np.ndarray:
    """Rows with a single largest value, with several, with NaN, infinities, and nothing but -inf."""
    rng = np.random.default_rng(width)
    table = rng.standard_normal((ROWS, width)).astype(np.float32)
    few = rng.integers(-2, 3, (10, width)).astype(np.float32)
    table[:10] = few
    for row in range(10, 20):
        table[row, rng.integers(0, width, 3)] = np.nan
    table[20, -1], table[21, 0], table[22] = np.inf, -np.inf, -np.inf
    table[23], table[24, width // 2 :] = np.nan, table[24].max()
    return table


@pytest.mark.parametrize("width", [1, 15, 16, 50, 64, 257, 1000, 1024])
def test_it_is_the_argmax_of_numpy(width: int, isa: Isa, tmp_path: Path) -> None:
    table = drawn(width)
    runner = looked_up(table, isa, tmp_path)
    for threads in (1, 3):
        runner.use_threads(threads)
        for rows in (range(ROWS), [24], [11, 3]):
            (logits,) = runner.run(tokens(rows))
            np.testing.assert_array_equal(logits, table[list(rows)])
            found = runner.executor.best_tokens()
            np.testing.assert_array_equal(found, table[list(rows)].argmax(axis=1))
    runner.executor.close()
