"""Normalisations of rows and of heads, with what is fused before and after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from drawn_weights import draw_weight
from fused_nodes import fused
from graph_runner import GraphRunner, dense, relative_error, tokens

from rusteeze.codegen.cpu.isa import Isa
from rusteeze.ir import Graph, Value
from rusteeze.ir.types import TOKENS, DType, TensorType
from rusteeze.weights import Weight

WIDTHS = (1, 5, 16, 20, 64, 100, 128)
WIDEST = max(WIDTHS)
NUM_TOKENS = 7
EPS = 1e-5
TOLERANCE = 2e-6  # of the largest result


class Norms:
    """A graph of named results over x and y f32[T,128]."""

    def __init__(self) -> None:
        self.graph, self.names = Graph(), list[str]()
        self.weights: dict[str, Weight] = {}
        self.rng = np.random.default_rng(11)
        ids = self.graph.input("input_ids", TensorType(DType.i32, (TOKENS,)))
        both = self.graph.add("embedding", ids, self.static(NUM_TOKENS, 2 * WIDEST, format="f32"))
        self.x = self.columns(both, 0, WIDEST)
        self.y = self.columns(both, WIDEST, 2 * WIDEST)

    def static(self, *shape: int, format: str = "f32") -> Value:
        name = f"w{len(self.weights)}"
        plain = format == "f32"
        values = self.rng.standard_normal(shape) + 0.5
        self.weights[name] = dense(values) if plain else draw_weight(format, shape, self.rng)
        return self.graph.weight(name, TensorType(DType.f32, shape), format)

    def columns(self, v: Value, start: int, stop: int) -> Value:
        return self.graph.add("slice", v, axis=-1, start=start, stop=stop)

    def out(self, name: str, *values: Value) -> None:
        for v in values:
            self.names.append(name)
            self.graph.outputs.append(v)

    def product(self, v: Value) -> Value:
        """A product with rounded values, since nothing else reads them."""
        w = self.static(24, int(v.type.shape[-1]), format="affine8g32s-f16")
        return self.graph.add("linear", v, w, None)


def add_rows(n: Norms) -> None:
    g = n.graph
    for width in WIDTHS:
        x = n.columns(n.x, WIDEST - width, WIDEST)
        w, b = n.static(width), n.static(width)
        n.out(f"rms {width}", g.add("rms_norm", x, w, eps=EPS))
        n.out(f"layer {width}", g.add("layer_norm", x, w, b, eps=EPS))
    n.out("rms, no weight", g.add("rms_norm", n.x, None, eps=0.1))
    n.out("rms, offset", g.add("rms_norm", n.x, n.static(WIDEST), eps=EPS, offset=1.0))
    n.out("layer, no weight", g.add("layer_norm", n.x, None, None, eps=EPS))
    n.out("layer, no bias", g.add("layer_norm", n.x, n.static(WIDEST), None, eps=EPS))
    n.out("layer, only bias", g.add("layer_norm", n.x, None, n.static(WIDEST), eps=EPS))
    far = g.add("add", n.columns(n.x, 0, 64), g.add("const", value=100.0))
    n.out("layer, far from 0", g.add("layer_norm", far, None, None, eps=EPS))
    zero = g.add("mul", n.x, g.add("const", value=0.0))
    n.out("rms of zeros", g.add("rms_norm", zero, n.static(WIDEST), eps=EPS))


def add_heads(n: Norms) -> None:
    """[T, heads, width]; a weight for all heads, or one for each."""
    g = n.graph
    for heads, width in ((4, 32), (8, 16), (6, 20), (1, 128)):
        part = n.columns(n.x, WIDEST - heads * width, WIDEST)
        x = g.add("reshape", part, shape=(TOKENS, heads, width))
        n.out(f"heads {heads}x{width}", g.add("rms_norm", x, n.static(width), eps=EPS))
        n.out(f"own weights {heads}x{width}", g.add("layer_norm", x, n.static(heads, width), None, eps=EPS))
    x = g.add("reshape", n.x, shape=(TOKENS, 4, 32))
    turned = g.add("permute", x, perm=(0, 2, 1))
    n.out("strided", g.add("rms_norm", turned, n.static(4), eps=EPS))


def add_regions(n: Norms) -> None:
    g = n.graph

    def residual(width: int, norm: str) -> Sequence[Value]:
        total = g.add("add", xs[width], ys[width])
        weights = [ws[width]] if norm == "rms_norm" else [ws[width], None]
        return [total, g.add(norm, total, *weights, eps=EPS)]

    def scaled_and_capped() -> Value:
        scaled = g.add("mul", n.x, g.add("const", value=3.0))
        return g.add("softcap", g.add("rms_norm", scaled, ws[WIDEST], eps=EPS), cap=2.0)

    def residual_after() -> Value:
        return g.add("add", n.y, g.add("rms_norm", n.x, ws[WIDEST], eps=EPS))

    def rounded(to: str) -> Sequence[Value]:
        total = g.add("add", n.x, n.y)
        y = g.add("rms_norm", total, ws[WIDEST], eps=EPS)
        return [total, y, g.add("quantize", y, to=to)]

    xs = {w: n.columns(n.x, 0, w) for w in (100, 128)}
    ys = {w: n.columns(n.y, 0, w) for w in (100, 128)}
    ws = {w: n.static(w) for w in (100, 128)}
    for width in (100, 128):
        for norm in ("rms_norm", "layer_norm"):
            n.out(f"residual {norm} {width}", *fused(g, "norm", lambda w=width, f=norm: residual(w, f)))
    n.out("scaled and capped", *fused(g, "norm", scaled_and_capped))
    n.out("residual after", *fused(g, "norm", residual_after))
    for to in ("int8", "bf16"):
        total, y, codes = fused(g, "norm", lambda to=to: rounded(to))
        n.out(f"rounded to {to}", total, y)
        if to == "int8":
            n.out("product", n.product(codes))
        else:
            w = n.static(24, WIDEST, format="bf16")
            n.out("product", g.add("linear", codes, w, None))


@pytest.fixture(scope="module")
def norms(isa: Isa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], GraphRunner]]:
    n = Norms()
    for add in (add_rows, add_heads, add_regions):
        add(n)
    runner = GraphRunner(n.graph, n.weights, isa, tmp_path_factory.mktemp("norms"))
    yield n.names, runner
    runner.executor.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_norms_are_those_of_the_interpreter(norms, threads):
    names, runner = norms
    runner.use_threads(threads)
    pairs = runner.pairs(tokens(range(NUM_TOKENS)))
    errors = [(name, relative_error(*pair)) for name, pair in zip(names, pairs, strict=True)]
    limits = {"layer, far from 0": 2e-5, "product": 1e-5}
    assert [(n, e) for n, e in errors if e > limits.get(n, TOLERANCE)] == []


def test_a_row_does_not_depend_on_its_company(norms):
    names, runner = norms
    every = runner.run(tokens(range(NUM_TOKENS)))
    for t in range(NUM_TOKENS):
        for name, one, all_rows in zip(names, runner.run(tokens([t])), every, strict=True):
            np.testing.assert_array_equal(one[0], all_rows[t], err_msg=name)
