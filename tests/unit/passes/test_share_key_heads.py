from __future__ import annotations

import pytest

from rusteeze.ir import parse
from rusteeze.passes.share_key_heads import ShareKeyHeads

HEAD = """graph @main(%q: f32[T,4,8], %k: f32[T,2,1,8], %v: f32[T,2,1,8], %c: f32[T,4], %s: f32[T,4]) {
  @sinks : f32[4] = ""
"""
BEFORE = """  %0 = broadcast_to(%k) {shape=['T',2,2,8]} : f32[T,2,2,8]
  %1 = reshape(%0) {shape=['T',4,8]} : f32[T,4,8]
  %2 = rope(%1, %c, %s) {width=8} : f32[T,4,8]
  %3 = broadcast_to(%v) {shape=['T',2,2,8]} : f32[T,2,2,8]
  %4 = reshape(%3) {shape=['T',4,8]} : f32[T,4,8]
"""
AFTER = """  %0 = reshape(%k) {shape=['T',2,8]} : f32[T,2,8]
  %1 = rope(%0, %c, %s) {width=8} : f32[T,2,8]
  %2 = reshape(%1) {shape=['T',2,1,8]} : f32[T,2,1,8]
  %3 = reshape(%2) {shape=['T',2,8]} : f32[T,2,8]
  %4 = reshape(%v) {shape=['T',2,8]} : f32[T,2,8]
"""
TAIL = "  %5 = attention(%q, {}, {}, {}) {{layer=3, scale=0.5, window=2}} : f32[T,4,8]\n  return %5\n}}\n"


@pytest.mark.parametrize("sinks", ["_", "@sinks"])
def test_heads_that_were_repeated_are_kept_once(check, sinks):
    weights = HEAD if sinks != "_" else HEAD.replace('  @sinks : f32[4] = ""\n', "")
    before = weights + BEFORE + TAIL.format("%2", "%4", sinks)
    check(ShareKeyHeads(), before, weights + AFTER + TAIL.format("%3", "%4", sinks))


def test_only_repetition_within_a_group_counts():
    """Heads repeated as a whole, 0 1 0 1, belong to other queries than 0 0 1 1."""
    text = (HEAD + BEFORE + TAIL.format("%2", "%4", "@sinks")).replace("T,2,1,8", "T,1,2,8")
    graph = parse(text)
    result = ShareKeyHeads().run(graph)
    assert result.matches == 0
    assert "not a group" in result.refusals[0].reason
