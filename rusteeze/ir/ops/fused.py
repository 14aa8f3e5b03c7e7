"""The fused region: several nodes that one kernel computes. Its meaning is its body."""

from __future__ import annotations

from rusteeze.ir.op import declare
from rusteeze.ir.types import TensorType


def _needs_body(*_: TensorType, anchor: str) -> TensorType:
    raise TypeError("a fused node needs a body")


# The body's inputs are bound to the operands by position; ``anchor`` names the op that shapes the kernel.
declare("fused(xs*) {anchor: str}", infer=_needs_body, reference=None)
