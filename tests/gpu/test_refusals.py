"""What has no GPU kernel is refused by name before anything is compiled."""

from __future__ import annotations

import pytest

from rusteeze.codegen.gpu.lower import GpuOptions, lower_for_gpu
from rusteeze.codegen.gpu.lowering import LoweringError
from rusteeze.codegen.gpu.source import row_index
from rusteeze.ir import Graph
from rusteeze.ir.types import TOKENS, DType, TensorType


@pytest.mark.parametrize("format", ["codebook4g32it-f32"])
@pytest.mark.parametrize("role", ["product", "table"])
def test_weights_that_no_kernel_reads(format: str, role: str) -> None:
    graph = Graph()
    ids = graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
    table = graph.weight("table", TensorType(DType.f32, (64, 64)), format if role == "table" else "bf16")
    x = graph.add("embedding", ids, table)
    head = graph.weight("head", TensorType(DType.f32, (64, 64)), format if role == "product" else "bf16")
    graph.outputs = [graph.add("linear", x, head, None)]
    with pytest.raises(LoweringError, match=f"weights of {format} have no GPU kernel: .*{'head' if role == 'product' else 'table'}"):
        lower_for_gpu(graph, GpuOptions("f32", 128))


def test_rows_of_huge_matrices_are_counted_in_64_bits() -> None:
    assert row_index("wn", 2**31 - 1) == "wn"
    assert row_index("wn + 7", 2**31) == "(wn + 7).to(tl.int64)"
