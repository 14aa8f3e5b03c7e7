"""Which passes run, in which order, and the driver that runs them.

Example: ``run_passes(graph, raising(tables), Observer.from_environment())``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rusteeze.ir.graph import Graph
from rusteeze.ir.text import print_graph
from rusteeze.ir.verify import VerifyError, verify
from rusteeze.observe import GRAPHS, PASSES, RULES, Observer
from rusteeze.passes.cache_latents import CacheLatents
from rusteeze.passes.canonicalize import Canonicalize
from rusteeze.passes.fuse import Fuse
from rusteeze.passes.fuse_linears import FuseLinears
from rusteeze.passes.pass_base import Pass, PassResult
from rusteeze.passes.quantize_activations import QuantizeActivations
from rusteeze.passes.raise_activations import RaiseActivations
from rusteeze.passes.raise_norms import RaiseNorms
from rusteeze.passes.raise_rope import RaiseRope
from rusteeze.passes.round_cache import RoundCache
from rusteeze.passes.share_key_heads import ShareKeyHeads
from rusteeze.passes.sink_gather_rows import SinkGatherRows
from rusteeze.passes.sort_columns import SortColumns, SortedWeight

PASS_TYPES: tuple[type[Pass], ...] = (
    Canonicalize, RaiseRope, RaiseNorms, RaiseActivations, ShareKeyHeads, CacheLatents,
    SortColumns, SinkGatherRows, FuseLinears, QuantizeActivations, RoundCache, Fuse,
)  # fmt: skip


def raising(tables: Mapping[str, np.ndarray] | None = None) -> list[Pass]:
    """From imported arithmetic to the vocabulary of language models. ``tables``: see RaiseRope."""
    return [
        RaiseRope(tables or {}),
        Canonicalize(),
        RaiseNorms(),
        RaiseActivations(),
        ShareKeyHeads(),
        Canonicalize(),
    ]


def lowering(columns: Mapping[str, SortedWeight] | None = None) -> list[Pass]:
    """From the raised graph towards kernels: the same meaning in fewer and larger products, in smaller
    caches, and on weights whose ``columns`` are sorted (CPU)."""
    return [CacheLatents(), SortColumns(columns or {}), SinkGatherRows(), FuseLinears(), Canonicalize()]


def rounding(activations: str, cache: str, codes: str = "int8") -> list[Pass]:
    """The passes that change results on purpose. ``activations``: "f32" rounds nothing, "bf16" only in
    front of bf16 weights, "int8" also in front of integer weights. ``cache``: what attention keeps.
    ``codes``: "bf16" rounds to that in front of all quantised weights (GPUs)."""
    rounded = [QuantizeActivations(int8=activations == "int8", codes=codes)]
    return [*(rounded if activations != "f32" else []), *([RoundCache(cache)] if cache != "f32" else [])]


def fusing() -> list[Pass]:
    """Into regions of one kernel each; products first, since their results are in registers."""
    return [Fuse("attention"), Fuse("linear"), Fuse("norm"), Fuse("pointwise")]


@dataclass(frozen=True)
class PassRun:
    """One line of the pass table."""

    name: str
    result: PassResult
    nodes_before: int
    nodes_after: int
    ms: float

    def __str__(self) -> str:
        return (
            f"{self.name:24} {self.result.matches:6} matches"
            f" {self.nodes_before:6} → {self.nodes_after} nodes {self.ms:9.1f} ms"
        )


def run_passes(
    graph: Graph,
    passes: Sequence[Pass],
    observer: Observer | None = None,
    *,
    verified: bool = False,
) -> list[PassRun]:
    """Run passes over ``graph`` in place; ``verified`` checks it after each.

    Raises VerifyError, naming the pass, when one leaves an ill-formed graph."""
    observer = observer or Observer()
    observer.dump("import.ir", print_graph(graph) if observer.folder else "")
    runs: list[PassRun] = []
    for p in passes:
        runs.append(_run_pass(graph, p))
        if verified:
            _verify_after(p, graph)
        _show(runs[-1], graph, observer)
    return runs


def _run_pass(graph: Graph, p: Pass) -> PassRun:
    before, start = len(graph.nodes), time.perf_counter()
    result = p.run(graph)
    ms = (time.perf_counter() - start) * 1e3
    return PassRun(p.name, result, before, len(graph.nodes), ms)


def _verify_after(p: Pass, graph: Graph) -> None:
    try:
        verify(graph)
    except VerifyError as e:
        raise VerifyError(f"after {p.name}: {e}") from None


def _show(run: PassRun, graph: Graph, observer: Observer) -> None:
    for line in (*run.result.firings, *run.result.refusals) if observer.shows(RULES) else ():
        observer.say(RULES, str(line))
    observer.say(PASSES, str(run))
    if observer.folder or (observer.shows(GRAPHS) and run.result.matches):
        text = print_graph(graph)
        observer.dump(f"{run.name}.ir", text)
        if run.result.matches:
            observer.say(GRAPHS, text)
