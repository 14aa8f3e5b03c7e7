"""What the plan says that a call costs, against counts by hand."""

from __future__ import annotations

import numpy as np

from rusteeze.artifact.contract import Cost
from rusteeze.codegen.cpu.lower import LoweringOptions, lower
from rusteeze.ir import Graph
from rusteeze.ir.types import ROWS, TOKENS, DType, TensorType

VOCABULARY, WIDTH, OUT = 512, 64, 128
HEADS, KV_HEADS, HEAD = 4, 2, 16


def costs(graph: Graph) -> dict[str, Cost]:
    """By the beginning of the kernel's name."""
    calls = lower(graph, LoweringOptions()).plan.calls
    return {call.kernel.split("_")[0]: call.cost for call in calls}


def tokens_of(graph: Graph, *shape: int) -> TensorType:
    return TensorType(DType.f32, (TOKENS, *shape))


def weight(graph: Graph, name: str, *shape: int):
    return graph.weight(name, TensorType(DType.f32, shape), "f32")


def test_a_table_is_read_by_row_and_a_matrix_whole() -> None:
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    x = graph.add("embedding", ids, weight(graph, "table", VOCABULARY, WIDTH))
    graph.outputs = [graph.add("linear", x, weight(graph, "w", OUT, WIDTH), None)]
    found = costs(graph)
    row, matrix = 4 * WIDTH, 4 * OUT * WIDTH
    assert found["embedding"].gathered_row_bytes == row
    assert found["embedding"].gathered_bytes == VOCABULARY * row
    assert found["embedding"].weight_bytes == found["embedding"].row_flops == 0
    assert found["linear"].weight_bytes == matrix
    assert found["linear"].row_flops == 2 * OUT * WIDTH
    assert found["linear"].row_bytes == 4 * (WIDTH + OUT)
    assert found["linear"].arithmetic == "f32"


def test_rounded_activations_say_with_which_instructions_their_products_are_made() -> None:
    for to, arithmetic in (("int8", "int8"), ("bf16", "bf16")):
        graph = Graph()
        ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
        x = graph.add("embedding", ids, weight(graph, "table", VOCABULARY, WIDTH))
        x = graph.add("quantize", x, to=to)
        w = graph.weight("w", TensorType(DType.f32, (OUT, WIDTH)), "affine8g32s-f16" if to == "int8" else "bf16")
        graph.outputs = [graph.add("linear", x, w, None)]
        assert costs(graph)["linear"].arithmetic == arithmetic


def test_rows_that_are_wanted_count_as_rows() -> None:
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    rows = graph.input("rows", TensorType(DType.i32, (ROWS,)))
    x = graph.add("embedding", ids, weight(graph, "table", VOCABULARY, WIDTH))
    x = graph.add("gather_rows", x, rows)
    graph.outputs = [graph.add("linear", x, weight(graph, "w", OUT, WIDTH), None)]
    found = costs(graph)
    assert (found["embedding"].space, found["linear"].space) == ("T", "R")


def test_attention_reads_the_cache_and_another_call_fills_it() -> None:
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    heads = [
        graph.add("embedding", ids, weight(graph, f"t{n}", VOCABULARY, n * HEAD))
        for n in (HEADS, KV_HEADS)
    ]
    q = graph.add("reshape", heads[0], shape=(TOKENS, HEADS, HEAD))
    kv = graph.add("reshape", heads[1], shape=(TOKENS, KV_HEADS, HEAD))
    out = graph.add("attention", q, kv, kv, None, layer=0, scale=1.0, window=7, cache="bf16")
    graph.outputs = [graph.add("reshape", out, shape=(TOKENS, HEADS * HEAD))]
    found = costs(graph)
    cached = 2 * KV_HEADS * HEAD * np.dtype(np.float16).itemsize
    attention, write = found["attention"], found["write"]
    assert attention.pair_flops == 2 * HEADS * 2 * HEAD
    assert (attention.cached_bytes, attention.window, attention.arithmetic) == (cached, 7, "bf16")
    assert (write.pair_flops, write.cached_bytes) == (0, 0)
    assert write.row_bytes == cached + 4 * KV_HEADS * HEAD


def test_attention_over_latents_reads_them_once() -> None:
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    x, key = (graph.add("embedding", ids, weight(graph, f"t{n}", VOCABULARY, n)) for n in (HEADS * WIDTH, WIDTH))
    q = graph.add("reshape", x, shape=(TOKENS, HEADS, WIDTH))
    k = graph.add("reshape", key, shape=(TOKENS, 1, WIDTH))
    values = WIDTH // 2
    out = graph.add("attention", q, k, None, None, layer=0, scale=1.0, value_width=values, cache="bf16")
    out = graph.add("reshape", out, shape=(TOKENS, HEADS * values))
    graph.outputs = [graph.add("block_linear", out, weight(graph, "w", HEADS, OUT, values))]
    found = costs(graph)
    assert found["attention"].pair_flops == 2 * HEADS * (WIDTH + values)
    assert found["attention"].cached_bytes == 2 * WIDTH
    assert found["block"].row_flops == 2 * HEADS * OUT * values
