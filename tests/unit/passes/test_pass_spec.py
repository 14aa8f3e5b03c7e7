"""Lists of passes as text, as `rusteeze opt -p` takes them."""

from __future__ import annotations

import pytest

from rusteeze.errors import UserError
from rusteeze.passes.fuse import Fuse
from rusteeze.passes.pass_base import Pass
from rusteeze.passes.pass_spec import known_names, parse_passes


@pytest.mark.parametrize("name", known_names())
def test_every_name_means_something(name: str) -> None:
    passes = parse_passes("fuse{anchor=linear}" if name == "fuse" else name)
    assert passes
    assert all(isinstance(p, Pass) for p in passes)


def test_options_are_fields() -> None:
    (fuse,) = parse_passes("fuse{anchor=norm}")
    assert fuse == Fuse("norm")


@pytest.mark.parametrize(
    "text", ["sunshine", "fuse{anchor}", "fuse{colour=red}", "fuse{anchor=3}", "fuse anchor"]
)
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(UserError):
        parse_passes(text)
