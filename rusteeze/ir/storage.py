"""In which format a static value is stored, as far as the graph says.

A weight has a format; rows that are joined, cut, picked or stacked keep it; whatever else is computed from weights is
plain float32.
"""

from __future__ import annotations

import re

from rusteeze.ir.graph import Node, Value

PLAIN = "f32"
_TRANSPOSED = re.compile(r"codebook\d+g\d+i?t-f\d+")
_INTEGERS = re.compile(r"codebook\d+g\d+it?-f\d+")


def stored_format(value: Value) -> str:
    """The format name of a static value; weights that have none yet count as PLAIN."""
    if value.node is None:
        return value.format or PLAIN
    return shared_format(value.node) or PLAIN


def shared_format(node: Node) -> str | None:
    """The format of all operands, if the node keeps it: it only joins, cuts, picks or stacks rows, or moves
    elements that are numbers of their own, or undoes that a weight is stored transposed."""
    formats = {stored_format(v) for v in node.inputs() if not _is_index(node, v)}
    if len(formats) != 1:
        return None
    (only,) = formats
    if node.op.name == "permute" and _TRANSPOSED.fullmatch(only):
        perm: tuple[int, ...] = node.attrs["perm"]  # type: ignore[assignment]
        rank = len(perm)
        return only.replace("t-", "-") if perm == (*range(rank - 2), rank - 1, rank - 2) else None
    return only if _keeps_format(node, only) else None


def is_quantized(format: str) -> bool:
    """Whether a format holds codes instead of numbers."""
    return format.startswith(("affine", "codebook", "float8"))


def rounding_for(format: str) -> str | None:
    """What activations may be rounded to for a product with such a weight: integers, on a line or in a
    table, go with int8 (their dot products are exact), float8 and bf16 with bf16; None: nothing."""
    if format.startswith("affine") or _INTEGERS.fullmatch(format):
        return "int8"
    return "bf16" if format == "bf16" or format.startswith("float8") else None


def _is_index(node: Node, value: Value) -> bool:
    return node.op.name == "gather_rows" and value is node.operands[1]


def _keeps_format(node: Node, format: str) -> bool:
    if _TRANSPOSED.fullmatch(format):
        return False
    before, after = next(node.inputs()).type, node.results[0].type
    if node.op.name == "concat":
        return node.attrs["axis"] == 0 and before.rank < 3
    if node.op.name == "gather_rows":
        return before.rank < 3
    if node.op.name == "slice":
        axis: int = node.attrs["axis"]  # type: ignore[assignment]
        return (axis == 0 or axis % before.rank == before.rank - 2) and node.attrs["step"] == 1
    if node.op.name == "reshape":
        return min(before.rank, after.rank) > 1 and before.shape[-1] == after.shape[-1]
    return node.op.name == "permute" and not is_quantized(format)
