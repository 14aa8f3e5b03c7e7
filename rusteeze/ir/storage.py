"""In which format a static value is stored, as far as the graph says.

A weight has a format; rows that are joined or cut keep it; whatever else is computed from weights is
plain float32.
"""

from __future__ import annotations

from rusteeze.ir.graph import Node, Value

PLAIN = "f32"
QUANTIZED = ("affine", "codebook")


def stored_format(value: Value) -> str:
    """The format name of a static value; weights that have none yet count as PLAIN."""
    if value.node is None:
        return value.format or PLAIN
    formats = {stored_format(v) for v in value.node.inputs()}
    if len(formats) != 1:
        return PLAIN
    (only,) = formats
    return only if _keeps_format(value.node, only) else PLAIN


def is_quantized(format: str) -> bool:
    """Whether a format holds integer codes, so that products with int8 activations are exact."""
    return format.startswith(QUANTIZED)


def _keeps_format(node: Node, format: str) -> bool:
    if node.op.name in ("concat", "slice"):
        return node.attrs["axis"] == 0 and node.attrs.get("step", 1) == 1
    return node.op.name == "permute" and not is_quantized(format)
