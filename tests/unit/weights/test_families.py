from __future__ import annotations

import numpy as np
import pytest

from rusteeze.weights import Affine, Codebook, Dense, Float8, concat_rows, parse_format, stack
from rusteeze.weights.families import with_leading_axes

RNG = np.random.default_rng(0)
TABLE = np.linspace(-1, 1, 16, dtype=np.float32)


def codes(*shape, bits=4):
    return RNG.integers(0, 1 << bits, shape, dtype=np.uint8)


def scales(*shape, dtype=np.float16):
    return RNG.standard_normal(shape).astype(dtype)


def dense(*shape):
    return Dense(RNG.standard_normal(shape, dtype=np.float32), "f32")


def affine(*shape, group=8):
    s = (*shape[:-1], shape[-1] // group)
    return Affine(4, group, codes(*shape), scales(*s), scales(*s))


def symmetric(*shape, group=8):
    return Affine(4, group, codes(*shape), scales(*shape[:-1], shape[-1] // group), zero=8)


def codebook(*shape, group=8):
    return Codebook(group, codes(*shape), TABLE, scales(*shape[:-1], shape[-1] // group))


def float8(*shape, group=8):
    return Float8(group, codes(*shape, bits=6), scales(*shape[:-1], shape[-1] // group, dtype=np.float32))


MAKERS = [dense, affine, symmetric, codebook, float8]
each_family = pytest.mark.parametrize("make", MAKERS)


def test_affine_with_minimum_means_scale_times_code_plus_minimum():
    w = Affine(2, 2, np.array([[0, 1, 2, 3]], np.uint8), np.float16([[2, 10]]), np.float16([[-1, 0.5]]))
    assert w.to_f32().tolist() == [[-1, 1, 20.5, 30.5]]
    assert w.format == "affine2g2m-f16"


def test_symmetric_affine_means_scale_times_code_minus_zero():
    w = Affine(2, 2, np.array([[0, 1, 2, 3]], np.uint8), np.float32([[2, 10]]), zero=1)
    assert w.to_f32().tolist() == [[-2, 0, 10, 20]]
    assert w.format == "affine2g2s1-f32"


def test_codebook_means_scale_times_entry():
    w = Codebook(2, np.array([[0, 15, 1, 0]], np.uint8), TABLE, np.float16([[1, -2]]))
    np.testing.assert_array_equal(w.to_f32(), [[-1, 1, -2 * TABLE[1], 2]])


def test_float8_means_scale_times_number():
    w = Float8(4, np.array([[0x00, 0x01, 0x38, 0xFE]], np.uint8), np.float32([[2]]))
    assert w.to_f32().tolist() == [[0, 2 * 2**-9, 2, -896]]
    assert w.format == "float8g4-f32"


def test_a_transposed_codebook_is_the_other_one_with_its_axes_swapped():
    w = codebook(3, 6, 16)
    other = w.transpose()
    assert other.shape == (3, 16, 6)
    assert other.format == "codebook4g8t-f16"
    np.testing.assert_array_equal(other.to_f32(), w.to_f32().swapaxes(-1, -2))
    np.testing.assert_array_equal(other.expert(1).to_f32(), w.to_f32()[1].T)
    assert other.transpose().format == w.format
    for cut in (lambda: other.rows(0), lambda: concat_rows([other, other])):
        with pytest.raises(ValueError, match="transposed"):
            cut()


@pytest.mark.parametrize(
    ("table", "integral"),
    [(np.arange(-8, 8), True), (TABLE, False), (np.arange(120, 136), False), (np.arange(16) - 128, True)],
)
def test_codebooks_of_small_integers_say_so(table, integral):
    w = Codebook(8, codes(2, 16), table.astype(np.float32), scales(2, 2))
    assert w.layout.integral is integral


def test_bf16_bits_are_the_upper_half_of_f32():
    values = np.float32([1, -2.5, 3e38, 0])
    w = Dense((values.view(np.uint32) >> 16).astype(np.uint16), "bf16")
    np.testing.assert_allclose(w.to_f32(), values, rtol=2**-8)
    assert w.to_f32()[:2].tolist() == [1, -2.5]


@each_family
@pytest.mark.parametrize("index", [3, slice(1, 5), np.array([4, 0, 4])], ids=str)
@pytest.mark.parametrize("shape", [(6, 16), (2, 6, 16)])
def test_rows_commute_with_decoding(make, index, shape):
    w = make(*shape)
    np.testing.assert_array_equal(w.rows(index).to_f32(), w.to_f32()[..., index, :])


@each_family
def test_experts_commute_with_decoding(make):
    w = make(3, 4, 16)
    np.testing.assert_array_equal(w.expert(1).to_f32(), w.to_f32()[1])
    assert w.expert(slice(1, 3)).shape == (2, 4, 16)


@each_family
@pytest.mark.parametrize("lead", [(), (2,)])
def test_concatenated_rows(make, lead):
    a, b = make(*lead, 3, 16), make(*lead, 5, 16)
    joined = concat_rows([a, b])
    assert joined.format == a.format
    np.testing.assert_array_equal(joined.to_f32(), np.concatenate([a.to_f32(), b.to_f32()], -2))


@each_family
def test_rows_in_another_arrangement(make):
    w = make(6, 16)
    stacked = with_leading_axes(w, (3, 2))
    assert stacked.format == w.format
    np.testing.assert_array_equal(stacked.to_f32(), w.to_f32().reshape(3, 2, 16))
    np.testing.assert_array_equal(stacked.rows(slice(1, 2)).to_f32(), w.to_f32()[1::2].reshape(3, 1, 16))


@each_family
def test_stacked_weights(make):
    a, b = make(3, 16), make(3, 16)
    np.testing.assert_array_equal(stack([a, b]).to_f32(), np.stack([a.to_f32(), b.to_f32()]))


@each_family
def test_format_says_what_the_weight_is(make):
    w = make(4, 16)
    assert parse_format(w.format) == w.layout
    assert w.shape == (4, 16)


def test_rows_of_a_bias_are_its_elements():
    w = dense(6)
    np.testing.assert_array_equal(w.rows(np.array([5, 0])).values, w.values[[5, 0]])
    np.testing.assert_array_equal(concat_rows([w, w]).values, np.concatenate([w.values] * 2))


def test_dense_views_do_not_copy():
    w = dense(4, 8)
    assert np.shares_memory(w.transpose().values, w.values)
    assert np.shares_memory(w.rows(slice(1, 3)).values, w.values)


def test_different_formats_do_not_join():
    with pytest.raises(ValueError, match="affine4g8m-f16, affine4g8s-f16"):
        concat_rows([affine(2, 16), symmetric(2, 16)])
    other = Codebook(8, codes(2, 16), TABLE * 2, scales(2, 2))
    with pytest.raises(ValueError, match="different codebooks"):
        concat_rows([codebook(2, 16), other])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Dense(np.zeros(3), "f32"),
        lambda: Dense(np.zeros(3), "u4"),
        lambda: Affine(4, 8, codes(2, 12), scales(2, 1), zero=8),
        lambda: Affine(4, 8, codes(2, 16), scales(2, 3), zero=8),
        lambda: Affine(4, 8, codes(2, 16), scales(2, 2), zero=16),
        lambda: Affine(4, 8, codes(2, 16), scales(2, 2), scales(2, 2), zero=8),
        lambda: Affine(4, 8, codes(2, 16), scales(2, 2), scales(2, 1)),
        lambda: Affine(4, 8, codes(2, 16).astype(np.int8), scales(2, 2)),
        lambda: Affine(4, 8, codes(2, 16), scales(2, 2, dtype=np.float64)),
        lambda: Codebook(8, codes(2, 16), TABLE[:8], scales(2, 2)),
        lambda: Float8(8, codes(2, 16), scales(2, 2)),
    ],
)
def test_parts_that_do_not_fit_are_refused(build):
    with pytest.raises(ValueError):  # noqa: PT011
        build()
