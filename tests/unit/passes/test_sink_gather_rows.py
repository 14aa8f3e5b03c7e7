from __future__ import annotations

from rusteeze.ir import parse
from rusteeze.passes.sink_gather_rows import SinkGatherRows

HEAD = """graph @main(%x: f32[T,8], %rows: i32[R]) {
  @n : f32[8] = ""
  @w : f32[8,8] = ""
  @h : f32[16,8] = ""
"""
BEFORE = (
    HEAD
    + """  %0 = relu(%x) : f32[T,8]
  %1 = linear(%0, @w, _) : f32[T,8]
  %2 = add(%x, %1) : f32[T,8]
  %3 = rms_norm(%2, @n) {eps=1e-06} : f32[T,8]
  %4 = gather_rows(%3, %rows) : f32[R,8]
  %5 = linear(%4, @h, _) : f32[R,16]
  return %5
}
"""
)


def test_everything_behind_the_rows_runs_on_rows(check):
    after = (
        HEAD
        + """  %0 = gather_rows(%x, %rows) : f32[R,8]
  %1 = relu(%0) : f32[R,8]
  %2 = linear(%1, @w, _) : f32[R,8]
  %3 = add(%0, %2) : f32[R,8]
  %4 = rms_norm(%3, @n) {eps=1e-06} : f32[R,8]
  %5 = linear(%4, @h, _) : f32[R,16]
  return %5
}
"""
    )
    assert check(SinkGatherRows(), BEFORE, after).matches == 4


def test_products_may_be_left_in_place(check):
    after = (
        HEAD
        + """  %0 = relu(%x) : f32[T,8]
  %1 = linear(%0, @w, _) : f32[T,8]
  %2 = gather_rows(%x, %rows) : f32[R,8]
  %3 = gather_rows(%1, %rows) : f32[R,8]
  %4 = add(%2, %3) : f32[R,8]
  %5 = rms_norm(%4, @n) {eps=1e-06} : f32[R,8]
  %6 = linear(%5, @h, _) : f32[R,16]
  return %6
}
"""
    )
    check(SinkGatherRows(products=False), BEFORE, after)


def test_what_all_tokens_need_stays(check):
    text = BEFORE.replace("return %5", "return %5, %2")
    after = (
        HEAD
        + """  %0 = relu(%x) : f32[T,8]
  %1 = linear(%0, @w, _) : f32[T,8]
  %2 = add(%x, %1) : f32[T,8]
  %3 = gather_rows(%2, %rows) : f32[R,8]
  %4 = rms_norm(%3, @n) {eps=1e-06} : f32[R,8]
  %5 = linear(%4, @h, _) : f32[R,16]
  return %5, %2
}
"""
    )
    check(SinkGatherRows(), text, after)


def test_shapes_and_axes_follow(check):
    before = """graph @main(%x: f32[T,8], %rows: i32[R]) {
  %0 = reshape(%x) {shape=['T',2,4]} : f32[T,2,4]
  %1 = permute(%0) {perm=[0,2,1]} : f32[T,4,2]
  %2 = softmax(%1) {axis=-1} : f32[T,4,2]
  %3, %4 = topk(%2) {k=1} : f32[T,4,1], i32[T,4,1]
  %5 = broadcast_to(%3) {shape=['T',4,2]} : f32[T,4,2]
  %6 = gather_rows(%5, %rows) : f32[R,4,2]
  return %6
}
"""
    after = """graph @main(%x: f32[T,8], %rows: i32[R]) {
  %0 = gather_rows(%x, %rows) : f32[R,8]
  %1 = reshape(%0) {shape=['R',2,4]} : f32[R,2,4]
  %2 = permute(%1) {perm=[0,2,1]} : f32[R,4,2]
  %3 = softmax(%2) {axis=-1} : f32[R,4,2]
  %4, %5 = topk(%3) {k=1} : f32[R,4,1], i32[R,4,1]
  %6 = broadcast_to(%4) {shape=['R',4,2]} : f32[R,4,2]
  return %6
}
"""
    check(SinkGatherRows(), before, after)


def test_attention_needs_all_tokens():
    text = """graph @main(%x: f32[T,2,4], %rows: i32[R]) {
  %0 = attention(%x, %x, %x, _) {layer=0, scale=1.0} : f32[T,2,4]
  %1 = gather_rows(%0, %rows) : f32[R,2,4]
  return %1
}
"""
    graph = parse(text)
    assert SinkGatherRows().run(graph).matches == 0
    assert graph == parse(text)


def test_moving_tokens_to_another_axis_stops_it():
    text = """graph @main(%x: f32[T,2,4], %rows: i32[R]) {
  %0 = permute(%x) {perm=[1,0,2]} : f32[2,T,4]
  %1 = permute(%0) {perm=[1,0,2]} : f32[T,2,4]
  %2 = gather_rows(%1, %rows) : f32[R,2,4]
  return %2
}
"""
    assert SinkGatherRows().run(parse(text)).matches == 0
