"""Single kernels against float64, over drawn shapes, formats, batches and page tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn_weights import draw_weight
from gpu_step import GpuStep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rusteeze.codegen.gpu import attention, lower_attention, lower_linear
from rusteeze.codegen.gpu.schedule import Tile, splits
from rusteeze.codegen.gpu.source import Source
from rusteeze.errors import UserError
from rusteeze.ir import Graph
from rusteeze.ir.ops.elementwise import bf16_bits, bf16_values
from rusteeze.ir.types import DType, TensorType
from rusteeze.passes.pipeline import fusing, run_passes
from rusteeze.weights import Dense, Float8, Weight
from rusteeze.weights.e4m3 import E4M3, NAN_CODE

Array = np.ndarray
DRAWN = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None,
)  # fmt: skip
FORMATS = ("f32", "bf16", "affine4g32m-f16", "affine4g64s-f16", "affine8g32s-f16", "affine8g64m-f32", "codebook4g32-f32", "float8g64-f32", "float8g32-f32")


def new_graph() -> Graph:
    graph = Graph()
    graph.input("input_ids", TensorType(DType.i32, ("T",)))
    graph.input("positions", TensorType(DType.i32, ("T",)))
    graph.input("rows", TensorType(DType.i32, ("R",)))
    return graph


def weight(graph: Graph, name: str, w: Weight):  # type: ignore[no-untyped-def]
    return graph.weight(name, TensorType(DType.f32, w.shape), w.format)


def finished(graph: Graph, value) -> Graph:  # type: ignore[no-untyped-def]
    """Every token's value is wanted, from a buffer of its own."""
    graph.outputs = [graph.add("gather_rows", value, graph.inputs[2])]
    run_passes(graph, fusing())
    return graph


def one_step(graph: Graph, weights: dict[str, Weight], n: int, folder: Path) -> Array:
    step = GpuStep(graph, weights, folder, "f32", 64)
    numbers = np.arange(n, dtype=np.int32)
    return step.run([(0, n)], numbers, numbers, numbers)


@DRAWN
@given(
    format=st.sampled_from(FORMATS), n=st.sampled_from([1, 40, 64, 130]), k=st.sampled_from([64, 192, 320]),
    rows=st.sampled_from([1, 3, 16, 17, 40]), epilogue=st.sampled_from(["", "bias", "residual", "glu"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_products(format: str, n: int, k: int, rows: int, epilogue: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    halves = 2 if epilogue == "glu" else 1
    w = draw_weight(format, (n * halves, k), rng)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    residual = rng.standard_normal((rows, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    weights: dict[str, Weight] = {
        "x": Dense(x, "f32"), "w": w, "r": Dense(residual, "f32"), "b": Dense(bias, "f32"),
    }  # fmt: skip
    graph = new_graph()
    source = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
    exact = format == "f32"
    if not exact:
        source = graph.add("quantize", source, to="bf16")
        x = bf16_values(bf16_bits(x))
    given_bias = weight(graph, "b", weights["b"]) if epilogue == "bias" else None
    value = graph.add("linear", source, weight(graph, "w", w), given_bias)
    wanted = x.astype(np.float64) @ as_products_see(w, exact).T
    if epilogue == "bias":
        wanted += bias
    if epilogue == "residual":
        value = graph.add("add", graph.add("embedding", graph.inputs[0], weight(graph, "r", weights["r"])), value)
        wanted += residual
    if epilogue == "glu":
        parts = [graph.add("slice", value, axis=-1, start=s, stop=s + n) for s in (0, n)]
        value = graph.add("glu", *parts, act="silu")
        gate, up = wanted[:, :n], wanted[:, n:]
        wanted = gate / (1 + np.exp(-gate)) * up
    found = one_step(finished(graph, value), weights, rows, tmp_path)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))


def as_products_see(w: Weight, exact: bool) -> Array:
    """The weight in float64; the values of a codebook are rounded to bf16 for bf16 products."""
    if exact or not hasattr(w, "table"):
        return w.to_f32().astype(np.float64)
    table = bf16_values(bf16_bits(w.table))
    scale = np.repeat(w.scale.astype(np.float64), w.group, -1)
    return table[w.codes] * scale


@pytest.mark.parametrize(("n", "k", "halves"), [(200, 320, 1), (72, 160, 2)])
def test_tiles_copied_by_hardware(n: int, k: int, halves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors instead of pointers: equal bits, ragged rows, columns and halves included."""
    monkeypatch.setattr(lower_linear, "tiles", lambda *_: (Tile(64, 64, 64, 4, 2),))
    rng, rows = np.random.default_rng(n), 70
    weights: dict[str, Weight] = {
        "x": Dense(rng.standard_normal((rows, k)).astype(np.float32), "f32"), "w": draw_weight("bf16", (n * halves, k), rng),
    }  # fmt: skip
    text, found = Source.text, []
    for tma in (False, True):
        monkeypatch.setattr(Source, "text", lambda self, _tma=False, tma=tma: text(self, tma))
        graph = new_graph()
        x = graph.add("quantize", graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"])), to="bf16")
        y = graph.add("linear", x, weight(graph, "w", weights["w"]), None)
        if halves == 2:
            y = graph.add("glu", *(graph.add("slice", y, axis=-1, start=s, stop=s + n) for s in (0, n)), act="silu")
        folder = tmp_path / str(tma)
        folder.mkdir()
        found.append(one_step(finished(graph, y), weights, rows, folder))
        assert any("TMA = tl.constexpr" in path.read_text() for path in folder.iterdir())
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("rows", [2, 40])
def test_split_sums_are_those_of_one_program(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile whose runs over K are programs of their own, one whose program makes all runs: equal bits."""
    k, n = 2048, 64
    assert splits(n, k, 128) == 4
    found = []
    rng = np.random.default_rng(1)
    w, x = draw_weight("bf16", (n, k), rng), rng.standard_normal((rows, k)).astype(np.float32)
    for up_to in (64, 0):
        monkeypatch.setattr(lower_linear, "tiles", lambda *_, up_to=up_to: (Tile(64, 64, 128, 4, 2, up_to),))
        graph = new_graph()
        weights: dict[str, Weight] = {"x": Dense(x, "f32"), "w": w}
        source = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
        value = graph.add("linear", graph.add("quantize", source, to="bf16"), weight(graph, "w", w), None)
        folder = tmp_path / str(up_to)
        folder.mkdir()
        found.append(one_step(finished(graph, value), weights, rows, folder))
    np.testing.assert_array_equal(found[0], found[1])
    wanted = bf16_values(bf16_bits(x)).astype(np.float64) @ w.to_f32().astype(np.float64).T
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)


@pytest.mark.parametrize("format", ["f32", "bf16", "affine4g32m-f16"])
@pytest.mark.parametrize(("rows", "n"), [(3, 192), (14, 224)])
def test_norms_between_products(format: str, rows: int, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applied by the product behind or by a kernel of its own, from the sums that the product before leaves: equal
    bits, and right."""
    rng = np.random.default_rng(rows)
    weights: dict[str, Weight] = {
        "x": Dense(rng.standard_normal((rows, n)).astype(np.float32), "f32"),
        "g": Dense(rng.standard_normal(n).astype(np.float32), "f32"),
        "a": draw_weight(format, (n, 192), rng),
        "b": draw_weight(format, (70, n), rng),
    }  # fmt: skip
    found = []
    for limit in (4096, 0):
        monkeypatch.setattr(lower_linear, "FUSED_ROWS", limit)
        graph = normed_product(weights, format != "f32")
        folder = tmp_path / str(limit)
        folder.mkdir()
        step = GpuStep(graph, weights, folder, "f32", 64)
        numbers = np.arange(rows, dtype=np.int32)
        found.append(step.run([(0, rows)], numbers, numbers, numbers))
        own = any(name.startswith("norm_of_sums") for name in step.executor.launched)
        assert own == (limit == 0)
        assert not any(name.startswith("rms_norm") for name in step.executor.launched)
    np.testing.assert_array_equal(found[0], found[1])
    x, g, a, b = (w.to_f32().astype(np.float64) for w in weights.values())
    y = x + rounded(x[:, : a.shape[1]], format) @ a.T
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * g
    wanted = rounded(y, format) @ b.T
    np.testing.assert_allclose(found[0], wanted, atol=(2e-5 if format == "f32" else 1e-2) * float(np.abs(wanted).max()))


def rounded(x: Array, format: str) -> Array:
    return x if format == "f32" else bf16_values(bf16_bits(x.astype(np.float32))).astype(np.float64)


def normed_product(weights: dict[str, Weight], to_bf16: bool) -> Graph:
    """b @ norm(x + a @ x), a of as many columns of x as it has."""
    graph = new_graph()
    x = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
    first = graph.add("slice", x, axis=-1, start=0, stop=weights["a"].shape[1])
    if to_bf16:
        first = graph.add("quantize", first, to="bf16")
    y = graph.add("add", x, graph.add("linear", first, weight(graph, "a", weights["a"]), None))
    y = graph.add("rms_norm", y, weight(graph, "g", weights["g"]), eps=1e-5)
    if to_bf16:
        y = graph.add("quantize", y, to="bf16")
    return finished(graph, graph.add("linear", y, weight(graph, "b", weights["b"]), None))


@pytest.mark.parametrize("rows", [1, 5, 60])
@pytest.mark.parametrize("format", ["bf16", "affine4g32m-f16", "codebook4g32-f32", "codebook4g32it-f32", "float8g32-f32"])
def test_tables_and_experts(format: str, rows: int, tmp_path: Path) -> None:
    """Rows of a table, then chosen matrices of a stack, also of one that is stored transposed, then others for each
    choice: for few pairs, several and many."""
    rng = np.random.default_rng(rows)
    experts, n, k = 6, 96, 64
    turned, plain_format = format.endswith("t-f32"), format.replace("t-", "-")
    stacked, second = draw_weight(plain_format, (experts, n, k), rng), draw_weight(plain_format, (experts, 40, n), rng)
    scores = rng.standard_normal((rows, experts)).astype(np.float32)
    scores[:, 3] -= 9  # nobody's choice
    bias = rng.standard_normal((experts, n)).astype(np.float32)
    weights: dict[str, Weight] = {
        "x": draw_weight(plain_format, (rows, k), rng), "w": stacked.transpose() if turned else stacked,
        "v": second, "i": Dense(scores, "f32"), "b": Dense(bias, "f32"),
    }  # fmt: skip
    graph = new_graph()
    x = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
    _, index = graph.add_many("topk", graph.add("embedding", graph.inputs[0], weight(graph, "i", weights["i"])), k=2)
    y = graph.add("expert_linear", x, index, weight(graph, "w", weights["w"]), weight(graph, "b", weights["b"]), transposed=turned)
    y = graph.add("expert_linear", y, index, weight(graph, "v", second), None)
    found = one_step(finished(graph, graph.add("reshape", y, shape=("T", 80))), weights, rows, tmp_path)
    best = np.argsort(-scores, -1)[:, :2]
    values = {name: weights[name].to_f32().astype(np.float64) for name in ("x", "v", "b")}
    first = np.einsum("tk,tjnk->tjn", values["x"], stacked.to_f32().astype(np.float64)[best]) + values["b"][best]
    wanted = np.einsum("tjk,tjnk->tjn", first, values["v"][best])
    np.testing.assert_allclose(found, wanted.reshape(rows, -1), atol=2e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("code", [NAN_CODE, NAN_CODE | 128])
def test_float8_without_a_number_is_refused(code: int, tmp_path: Path) -> None:
    weights: dict[str, Weight] = {"x": Float8(32, np.full((1, 32), code, np.uint8), np.ones((1, 1), np.float32))}
    graph = new_graph()
    x = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
    with pytest.raises(UserError, match="a weight of float8 holds NaN"):
        GpuStep(finished(graph, x), weights, tmp_path, "f32", 64)


def test_float8_knows_all_its_numbers(tmp_path: Path) -> None:
    """Each code but the two of NaN, subnormal ones included."""
    codes = np.array([c for c in range(256) if c & 127 != NAN_CODE] + [0, 0], np.uint8)[None]
    weights: dict[str, Weight] = {"x": Float8(256, codes, np.ones((1, 1), np.float32))}
    graph = new_graph()
    x = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
    zero = np.zeros(1, np.int32)
    step = GpuStep(finished(graph, x), weights, tmp_path, "f32", 64)
    np.testing.assert_array_equal(step.run([(0, 1)], zero, zero, zero), E4M3[codes])


@pytest.mark.parametrize("width", [300, 4096, 9000])
def test_likeliest_tokens(width: int, tmp_path: Path) -> None:
    """The first of equals; infinity for a NaN."""
    rng = np.random.default_rng(width)
    table = rng.integers(-50, 50, (4, width)).astype(np.float32)  # with many equals
    table[2, width // 2] = np.nan
    table[3, -1] = 77
    weights: dict[str, Weight] = {"x": Dense(table, "f32")}
    graph = new_graph()
    x = graph.add("embedding", graph.inputs[0], weight(graph, "x", weights["x"]))
    step = GpuStep(finished(graph, x), weights, tmp_path, "f32", 64)
    numbers = np.arange(4, dtype=np.int32)
    step.run([(0, 4)], numbers, numbers, numbers)
    values, places = step.executor.best
    part = values.argmax(1)
    assert places[numbers, part][[0, 1, 3]].tolist() == table.argmax(1)[[0, 1, 3]].tolist()
    assert values.max(1).tolist() == [*table[:2].max(1), np.inf, 77]


def attended(q: Array, k: Array, v: Array, window: int, softcap: float, sinks: Array | None) -> Array:
    """Causal attention of one sequence in float64: [T, H, DV]."""
    group, n = q.shape[1] // k.shape[1], len(q)
    logits = np.einsum("qhd,khd->hqk", q, np.repeat(k, group, 1)) / np.sqrt(q.shape[2])
    logits = np.tanh(logits / softcap) * softcap if softcap else logits
    position, key = np.arange(n)[:, None], np.arange(n)[None]
    hidden = (key > position) | ((key <= position - window) if window else False)
    p = np.exp(np.where(hidden, -np.inf, logits))
    total = p.sum(-1, keepdims=True) + (np.exp(sinks)[:, None, None] if sinks is not None else 0)
    return np.einsum("hqk,khd->qhd", p / total, np.repeat(v, group, 1))


@DRAWN
@given(
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2)]), widths=st.sampled_from([(16, 16), (32, 24), (24, 16)]),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=2), window=st.sampled_from([0, 1, 20]),
    softcap=st.sampled_from([0.0, 3.0]), with_sinks=st.booleans(), cache=st.sampled_from(["f32", "bf16"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_attention(
    heads: tuple[int, int], widths: tuple[int, int], lengths: list[int], window: int, softcap: float,
    with_sinks: bool, cache: str, seed: int, tmp_path: Path,
) -> None:  # fmt: skip
    """Prompts in two chunks each, side by side, then a token of each."""
    check_attention(heads, widths, [n + 1 for n in lengths], window, softcap, with_sinks, cache, seed, tmp_path)


@pytest.fixture
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 64 keys, so that short sequences have several."""
    monkeypatch.setattr(attention, "SPLIT", 64)
    monkeypatch.setattr(lower_attention, "SPLIT", 64)


@pytest.mark.usefixtures("_short_parts")
@pytest.mark.parametrize("window", [0, 90])
def test_parts_of_a_long_softmax(window: int, tmp_path: Path) -> None:
    """More keys than one part: joined by one program for a prompt, by the last of several for a token."""
    check_attention((2, 1), (16, 16), [150, 40], window, 0.0, True, "f32", 4, tmp_path)


@pytest.mark.usefixtures("_short_parts")
def test_parts_are_joined_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of their own for each part, or one for all: equal bits."""
    found = []
    for limit in (4096, 1):
        monkeypatch.setattr(lower_attention, "SPLIT_TOKENS", limit)
        folder = tmp_path / str(limit)
        folder.mkdir()
        found.append(check_attention((2, 1), (16, 16), [140], 0, 0.0, False, "f32", 5, folder))
    np.testing.assert_array_equal(found[0], found[1])


def check_attention(
    heads: tuple[int, int], widths: tuple[int, int], lengths: list[int], window: int, softcap: float,
    with_sinks: bool, cache: str, seed: int, folder: Path,
) -> Array:  # fmt: skip
    rng = np.random.default_rng(seed)
    (h, kv), (d, dv), total = heads, widths, sum(lengths)
    q, k, v = (rng.standard_normal((total, *s)).astype(np.float32) for s in ((h, d), (kv, d), (kv, dv)))
    sinks = rng.standard_normal(h).astype(np.float32) if with_sinks else None
    graph = new_graph()
    weights: dict[str, Weight] = {n: Dense(a.reshape(total, -1), "f32") for n, a in (("q", q), ("k", k), ("v", v))}
    parts = []
    for name, a in (("q", q), ("k", k), ("v", v)):
        rows = graph.add("embedding", graph.inputs[0], weight(graph, name, weights[name]))
        parts.append(graph.add("reshape", rows, shape=("T", *a.shape[1:])))
    given_sinks = None
    if sinks is not None:
        weights["s"] = Dense(sinks, "f32")
        given_sinks = weight(graph, "s", weights["s"])
    out = graph.add(
        "attention", *parts, given_sinks, layer=0, scale=d**-0.5, window=window, softcap=softcap
    )
    graph = finished(graph, graph.add("reshape", out, shape=("T", h * dv)))
    step = GpuStep(graph, weights, folder, cache, 512, num_blocks=48)
    found = np.zeros((total, h * dv), np.float32)
    first = np.cumsum([0, *lengths])
    done = [0] * len(lengths)
    for take in (lambda n: (n - 1) // 2, lambda n: n - 1 - (n - 1) // 2, lambda n: 1):
        chunks = [(s, take(n)) for s, n in enumerate(lengths) if take(n)]
        if not chunks:
            continue
        positions = np.concatenate([np.arange(done[s], done[s] + n) for s, n in chunks])
        ids = np.concatenate([first[s] + np.arange(done[s], done[s] + n) for s, n in chunks])
        rows = np.arange(len(ids), dtype=np.int32)
        found[ids] = step.run(chunks, ids.astype(np.int32), positions.astype(np.int32), rows)
        for s, n in chunks:
            done[s] += n
    wanted = [
        attended(*(a[first[s] : first[s + 1]].astype(np.float64) for a in (q, k, v)), window, softcap, sinks)
        for s in range(len(lengths))
    ]
    tolerance = 1e-5 if cache == "f32" else 0.06
    np.testing.assert_allclose(found, np.concatenate(wanted).reshape(total, -1), atol=tolerance)
    return found
