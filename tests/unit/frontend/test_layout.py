"""Model axes → token-major axes."""

from __future__ import annotations

import pytest

from rusteeze.frontend.errors import UnsupportedLayout
from rusteeze.frontend.layout import Layout, aligned_shape, check_reshape, permutation


@pytest.mark.parametrize(
    ("shape", "ir_shape"),
    [
        ((1, "T"), ("T",)),
        ((1, "T", 64), ("T", 64)),
        ((1, 4, "T", 16), ("T", 4, 16)),
        ((1, 1, "T", 16), ("T", 1, 16)),
        (("T", 64), ("T", 64)),
        (("T", 1), ("T", 1)),
        ((64, 32), (64, 32)),
        ((1, 8), (1, 8)),
        ((), ()),
    ],
)
def test_tokens_come_first_and_the_batch_goes(shape: tuple, ir_shape: tuple) -> None:
    assert Layout(shape).ir_shape == ir_shape


def test_two_token_axes_are_refused() -> None:
    with pytest.raises(UnsupportedLayout, match="two token axes"):
        _ = Layout((1, 1, "T", "T")).order


def test_axes_follow_their_data() -> None:
    layout = Layout((1, 4, "T", 16))
    assert [layout.axis(i) for i in (1, 2, -1)] == [1, 0, 2]
    with pytest.raises(UnsupportedLayout, match="batch axis"):
        layout.axis(0)


def test_moving_only_tokens_is_no_permutation() -> None:
    before, after = Layout((1, "T", 4, 16)), Layout((1, 4, "T", 16))
    assert permutation(before, after, (0, 2, 1, 3)) == (0, 1, 2)
    assert permutation(Layout((1, "T", 4, 8)), Layout((1, "T", 8, 4)), (0, 1, 3, 2)) == (0, 2, 1)
    assert permutation(Layout((8, 4)), Layout((4, 8)), (1, 0)) == (1, 0)


def test_broadcasting_keeps_the_models_alignment() -> None:
    heads = Layout((1, 4, "T", 16))
    assert aligned_shape(Layout((1, 1, "T", 16)), heads) == ("T", 1, 16)
    assert aligned_shape(Layout((4, 1, 16)), heads) == (4, 16)
    assert aligned_shape(Layout((16,)), heads) == (16,)
    assert aligned_shape(Layout(()), heads) == ()


def test_a_static_operand_cannot_vary_with_the_token() -> None:
    with pytest.raises(UnsupportedLayout, match="does not broadcast"):
        aligned_shape(Layout((4, 16)), Layout((1, 16, 4, "T")))


def test_reshapes_may_not_cross_the_tokens() -> None:
    check_reshape(Layout((1, "T", 64)), Layout((1, "T", 4, 16)))
    check_reshape(Layout(("T", 64)), Layout((1, "T", 64)))
    with pytest.raises(UnsupportedLayout, match="mixes tokens"):
        check_reshape(Layout((1, 4, "T", 16)), Layout((1, "T", 64)))
