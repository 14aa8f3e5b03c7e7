"""Combinations that make no sense are refused when they are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from rusteeze.errors import UserError
from rusteeze.quantize.options import QuantizeOptions


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": 5}, "5 bits: choose one of 2, 3, 4, 8"),
        ({"group": 0}, "group 0: choose a multiple of 16"),
        ({"group": 100}, "group 100"),
        ({"tokens": 100}, "100 tokens make no window"),
        ({"target_bits": 1.5}, "target bits 1.5"),
        ({"target_bits": 3.0, "format": "awq"}, "gptq and compressed-tensors hold them"),
        ({"method": "fp8", "format": "gptq"}, "gptq holds no float8"),
        ({"format": "awq", "bits": 3}, "awq holds asymmetric weights of 4 bits"),
        ({"format": "gguf", "group": 64, "symmetric": True}, "use --sym --group 32"),
        ({"format": "gguf", "group": 32}, "use --sym --group 32"),
        ({"format": "gguf", "group": 32, "symmetric": True, "method": "awq"}, "awq changes norms"),
        ({"act_order": True}, "--act-order is a matter of gptq"),
    ],
)
def test_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        QuantizeOptions(**fields)
