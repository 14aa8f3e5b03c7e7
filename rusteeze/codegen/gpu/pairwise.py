"""Sums whose order is the same however a program holds its elements: trees over halves.

In which order tl.sum adds depends on how elements are spread over threads, and so on tile and warps.
"""

from __future__ import annotations

from rusteeze.codegen.gpu.source import Source


def pairwise(k: Source, value: str, shape: tuple[str | int, int, str | int]) -> str:
    """Sums over the middle axis, a power of two, of a block of that shape: a block of the outer two."""
    a, length, b = shape
    while length > 1:
        length //= 2
        value = k.let(f"tl.sum(tl.reshape({value}, ({a}, 2, {length}, {b})), 1)")
    return k.let(f"tl.reshape({value}, ({a}, {b}))")
