"""The methods by name."""

from __future__ import annotations

from rusteeze.quantize.awq import Awq
from rusteeze.quantize.fp8 import Fp8
from rusteeze.quantize.gptq import Gptq
from rusteeze.quantize.method import Method
from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.rtn import Rtn


def method_of(options: QuantizeOptions) -> Method:
    """The method that was asked for, with its own options."""
    methods: dict[str, Method] = {
        "rtn": Rtn(), "gptq": Gptq(options.orders_columns), "awq": Awq(), "fp8": Fp8(),
    }  # fmt: skip
    return methods[options.method]
