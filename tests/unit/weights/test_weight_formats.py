from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rusteeze.weights import DENSE_DTYPES, Format, dense_format, parse_format

BITS = st.integers(1, 8)
GROUPS = st.integers(1, 512)
SCALES = st.sampled_from(["f16", "f32"])
FORMATS = st.one_of(
    st.sampled_from(list(DENSE_DTYPES)).map(dense_format),
    st.builds(Format, st.just("affine"), SCALES, BITS, GROUPS),
    st.builds(
        Format, st.just("codebook"), SCALES, st.just(4), GROUPS, integral=st.booleans(), transposed=st.booleans()
    ),
    st.builds(Format, st.just("float8"), st.just("f32"), st.just(8), GROUPS),
    BITS.flatmap(
        lambda bits: st.builds(
            Format, st.just("affine"), SCALES, st.just(bits), GROUPS, st.just(True),
            st.integers(0, (1 << bits) - 1),
        )
    ),
)  # fmt: skip


@given(FORMATS)
def test_names_are_read_back(layout):
    assert parse_format(str(layout)) == layout


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("bf16", Format("dense", "bf16", 16)),
        ("affine4g32m-f16", Format("affine", "f16", 4, 32)),
        ("affine8g32s-f16", Format("affine", "f16", 8, 32, True, 128)),
        ("affine2g256s1-f16", Format("affine", "f16", 2, 256, True, 1)),
        ("codebook4g16-f32", Format("codebook", "f32", 4, 16)),
        ("codebook4g32it-f32", Format("codebook", "f32", 4, 32, integral=True, transposed=True)),
        ("float8g128-f32", Format("float8", "f32", 8, 128)),
    ],
)
def test_names_are_stable(name, layout):
    assert parse_format(name) == layout
    assert str(layout) == name


@pytest.mark.parametrize(
    "name", ["", "f8", "affine4g32-f16", "affine9g32m-f16", "affine4g0m-f16", "codebook4g32s-f16", "f32 ", "float8g8-f16", "codebook8g8-f16"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="format"):
        parse_format(name)
