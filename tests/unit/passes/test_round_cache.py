from __future__ import annotations

import numpy as np
import pytest

from rusteeze.ir import KVState, interpret, parse, verify
from rusteeze.ir.ops.attention import cached
from rusteeze.passes.round_cache import RoundCache


def graph_of(width: int) -> str:
    return f"""graph @main(%q: f32[T,4,{width}], %k: f32[T,2,{width}], %v: f32[T,2,8]) {{
  %0 = attention(%q, %k, %v, _) {{layer=0, scale=0.5}} : f32[T,4,8]
  return %0
}}
"""


@pytest.mark.parametrize("to", ["bf16", "int8"])
def test_every_attention_keeps_what_the_cache_can_hold(to):
    graph = parse(graph_of(64))
    assert RoundCache(to).run(graph).matches == 1
    verify(graph)
    assert graph.nodes[0].attrs["cache"] == to
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal((6, h, d), np.float32) for n, h, d in (("q", 4, 64), ("k", 2, 64), ("v", 2, 8))}
    kept = {"k": cached(inputs["k"], to, 32), "v": cached(inputs["v"], to, 8)}
    assert not np.array_equal(kept["k"], inputs["k"])
    found = interpret(graph, inputs, {}, KVState([(0, 6)]))
    wanted = interpret(parse(graph_of(64)), inputs | kept, {}, KVState([(0, 6)]))
    np.testing.assert_array_equal(found[0], wanted[0])


def test_int8_keeps_small_dims_beside_an_outlier_of_another_group():
    key = np.full((1, 1, 64), 0.01, np.float32)
    key[..., 0] = 100
    kept = cached(key, "int8", 32)
    assert (kept[..., 1:32] == 0).all()
    np.testing.assert_allclose(kept[..., 32:], 0.01, rtol=1e-6)


def test_odd_heads_have_no_pairs_for_bf16():
    graph = parse(graph_of(33))
    (refusal,) = RoundCache("bf16").run(graph).refusals
    assert refusal.reason == "bf16 is kept in pairs, 33 is odd"
    assert graph.nodes[0].attrs["cache"] == "f32"
    assert RoundCache("int8").run(graph).matches == 1


def test_what_no_cache_holds_is_refused():
    with pytest.raises(ValueError, match="no cache of 'int4', only f32, bf16, int8"):
        RoundCache("int4")
