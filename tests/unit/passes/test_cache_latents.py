from __future__ import annotations

import pytest

from rusteeze.ir import parse
from rusteeze.ir.probe import compare_graphs
from rusteeze.ir.rewrite import Rule
from rusteeze.passes import cache_latents
from rusteeze.passes.cache_latents import CacheLatents

# Heads of 3 + 2 elements, values of 5, from a latent of 6.
HEAD = """graph @main(%q: f32[T,4,5], %x: f32[T,6], %p: f32[T,1,2], %c: f32[T,1], %s: f32[T,1]) {
  @w : f32[32,6] = ""
"""
KEYS = """  %0 = linear(%x, @w, _) : f32[T,32]
  %1 = reshape(%0) {shape=['T',4,8]} : f32[T,4,8]
  %2 = slice(%1) {axis=-1, start=0, stop=3} : f32[T,4,3]
  %3 = slice(%1) {axis=-1, start=3, stop=8} : f32[T,4,5]
  %4 = broadcast_to(%p) {shape=['T',4,2]} : f32[T,4,2]
  %5 = concat(%2, %4) {axis=-1} : f32[T,4,5]
"""
TURNED = "  %6 = rope(%q, %c, %s) {style='inter', width=2, at_end=True} : f32[T,4,5]\n"
ATTEND = """  %7 = attention(%6, %5, %3, _) {layer=2, scale=0.5} : f32[T,4,5]
  return %7
}
"""
AFTER = """  %0 = slice(%q) {axis=-1, start=0, stop=3} : f32[T,4,3]
  %1 = reshape(%0) {shape=['T',12]} : f32[T,12]
  %2 = reshape(@w) {shape=[4,8,6]} : f32[4,8,6]
  %3 = slice(%2) {axis=1, start=0, stop=3} : f32[4,3,6]
  %4 = permute(%3) {perm=[0,2,1]} : f32[4,6,3]
  %5 = block_linear(%1, %4) : f32[T,24]
  %6 = reshape(%5) {shape=['T',4,6]} : f32[T,4,6]
  %7 = slice(%q) {axis=-1, start=3, stop=5} : f32[T,4,2]
  %8 = rope(%7, %c, %s) {style='inter', width=2} : f32[T,4,2]
  %9 = concat(%6, %8) {axis=-1} : f32[T,4,8]
  %10 = reshape(%x) {shape=['T',1,6]} : f32[T,1,6]
  %11 = concat(%10, %p) {axis=-1} : f32[T,1,8]
  %12 = attention(%9, %11, _, _) {layer=2, scale=0.5, value_width=6} : f32[T,4,6]
  %13 = reshape(%12) {shape=['T',24]} : f32[T,24]
  %14 = reshape(@w) {shape=[4,8,6]} : f32[4,8,6]
  %15 = slice(%14) {axis=1, start=3, stop=8} : f32[4,5,6]
  %16 = block_linear(%13, %15) : f32[T,20]
  %17 = reshape(%16) {shape=['T',4,5]} : f32[T,4,5]
  return %17
}
"""


def test_the_latent_is_kept_instead_of_the_heads(check):
    assert check(CacheLatents(), HEAD + KEYS + TURNED + ATTEND, HEAD + AFTER).matches == 3


def test_a_rotation_that_begins_in_the_latent_part_stays_whole():
    """Queries are turned further than the shared part of the keys."""
    text = (HEAD + KEYS + TURNED + ATTEND).replace("width=2", "width=4")
    text = text.replace("%c: f32[T,1], %s: f32[T,1]", "%c: f32[T,2], %s: f32[T,2]")
    graph, before = parse(text), parse(text)
    result = CacheLatents().run(graph)
    assert [n.attrs["width"] for n in graph.nodes if n.op.name == "rope"] == [4]
    assert result.matches == 1
    assert {r.reason for r in result.refusals} == {"it is rotated in part", "it is not what is rotated"}
    assert compare_graphs(before, graph) < 1e-4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"%p: f32[T,1,2]": "%p: f32[T,4,2]"}, "differs from head to head"),
        ({"stop=8} : f32[T,4,5]": "stop=7} : f32[T,4,4]", "scale=0.5} : f32[T,4,5]": "scale=0.5} : f32[T,4,4]"}, "unused"),
        ({"T,6]": "T,60]", "32,6]": "32,60]"}, "no smaller than the heads"),
    ],
)  # fmt: skip
def test_what_is_no_shared_latent_is_declined_with_a_reason(changes, reason):
    text = HEAD + KEYS + TURNED + ATTEND
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    result = CacheLatents().run(parse(text))
    assert result.matches == 0
    assert [reason in r.reason for r in result.refusals] == [True]


@pytest.mark.parametrize("attrs", ["window=4", "softcap=2.0"])
def test_attention_of_another_kind_is_left_alone(attrs):
    text = (HEAD + KEYS + TURNED + ATTEND).replace("scale=0.5", f"scale=0.5, {attrs}")
    assert CacheLatents().run(parse(text)).matches == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("start=?n, stop=?end})) {shape=?out}", "start=0, stop=?five})) {shape=?out}"),
        ("start=0, stop=?n}) {perm=[0, 2, 1]}", "start=?five, stop=?end}) {perm=[0, 2, 1]}"),
    ],
    ids=["values", "keys"],
)
def test_a_rewrite_that_changes_results_is_declined(monkeypatch, right, wrong):
    """The check on drawn data notices when the wrong rows of the weight make values or keys."""
    rule = cache_latents.ABSORB
    wrong = rule.equation.replace(right, wrong)
    assert wrong != rule.equation
    let = {**rule.let, "five": lambda _: 5}
    monkeypatch.setattr(cache_latents, "ABSORB", Rule(wrong, where=rule.where, let=let))
    result = CacheLatents().run(parse(HEAD + KEYS + TURNED + ATTEND))
    assert result.matches == 0
    assert "on probe data" in result.refusals[0].reason
