from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import imported
import numpy as np
import pytest

from rusteeze.ir import Graph, VerifyError, parse, print_graph
from rusteeze.ir.probe import compare_graphs
from rusteeze.observe import Observer
from rusteeze.passes.pass_base import Pass, PassResult
from rusteeze.passes.pipeline import lowering, raising, run_passes


def rotary_tables() -> dict[str, np.ndarray]:
    angles = np.random.default_rng(7).standard_normal(
        (imported.POSITIONS, imported.HEAD_WIDTH // 2)
    )
    whole = np.concatenate([angles, angles], -1).astype(np.float32)
    return {"rotary.0.cos": np.cos(whole), "rotary.0.sin": np.sin(whole)}


def test_raises_an_imported_llama_completely():
    graph, tables = imported.llama(2), rotary_tables()
    before = graph.copy()
    run_passes(graph, raising(tables), verified=True)
    count = Counter(n.op.name for n in graph.nodes)
    assert count == {
        "linear": 15, "rms_norm": 5, "attention": 2, "rope": 4, "glu": 2, "add": 4, "embedding": 3,
        "slice": 2, "reshape": 8, "gather_rows": 1,
    }  # fmt: skip
    assert compare_graphs(before, graph, tables) < 1e-4


def test_lowering_keeps_the_meaning_and_runs_the_tail_on_rows():
    graph = imported.llama(2)
    run_passes(graph, raising(rotary_tables()))
    before = graph.copy()
    run_passes(graph, lowering(), verified=True)
    assert compare_graphs(before, graph, rotary_tables()) < 1e-4
    products = [str(n.result.type) for n in graph.nodes if n.op.name == "linear"]
    assert products == [
        "f32[T,64]", "f32[T,32]", "f32[T,96]", "f32[T,32]", "f32[T,64]",
        "f32[R,32]", "f32[R,96]", "f32[R,32]", "f32[R,64]",
    ]  # fmt: skip


def test_a_deep_graph_takes_little_time():
    graph = imported.llama(80)
    runs = run_passes(graph, raising(rotary_tables()))
    assert max(r.ms for r in runs) < 2000
    assert runs[0].nodes_before > 4000


def test_passes_leave_a_finished_graph_alone():
    graph = imported.llama(1)
    run_passes(graph, raising(rotary_tables()) + lowering())
    text = print_graph(graph)
    runs = run_passes(graph, raising(rotary_tables()) + lowering())
    assert print_graph(graph) == text
    assert sum(r.result.matches for r in runs) == 0


@pytest.mark.parametrize(
    ("level", "shown"),
    [(0, []), (1, ["table"]), (3, ["table", "ir"]), (5, ["table", "ir", "rule"])],
)
def test_debug_ladder(level, shown):
    stream = io.StringIO()
    run_passes(imported.llama(1), raising(), Observer(level, stream=stream))
    text = stream.getvalue()
    signs = {
        "table": "raise-norms  ",
        "ir": "graph @main(",
        "rule": "mul(x, sigmoid(x)) => silu(x)",
    }
    assert [k for k, sign in signs.items() if sign in text] == shown


def test_dump_folder_holds_a_numbered_file_per_stage(tmp_path):
    graph = imported.llama(1)
    run_passes(graph, raising(rotary_tables()), Observer(folder=tmp_path))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "00-import.ir", "01-raise-rope.ir", "02-canonicalize.ir", "03-raise-norms.ir",
        "04-raise-activations.ir", "05-share-key-heads.ir", "06-canonicalize.ir",
    ]  # fmt: skip
    assert parse((tmp_path / names[-1]).read_text()) == graph


@dataclass(frozen=True)
class BreakTypes(Pass):
    """After: nonsense."""

    name: ClassVar[str] = "break-types"

    def run(self, graph: Graph) -> PassResult:
        graph.nodes[0].results[0].type = graph.inputs[0].type
        return PassResult()


def test_verification_names_the_pass():
    with pytest.raises(VerifyError, match="after break-types"):
        run_passes(imported.llama(1), [BreakTypes()], verified=True)
