"""The ops of the IR. Importing this package declares them all."""

from rusteeze.ir.ops import attention, elementwise, fused, linear, norm, reduce, shape

__all__ = ["attention", "elementwise", "fused", "linear", "norm", "reduce", "shape"]
