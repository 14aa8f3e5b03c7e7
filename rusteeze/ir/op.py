"""How an op is declared.

One declaration holds everything there is to know about an op: its signature, its result types and its
meaning in numpy. The verifier, the printer, the parser and the interpreter are derived from it::

    declare("rms_norm(x, w?) {eps: float, offset: float = 0.0}", infer=same_as_x, reference=rms_norm)

Signature syntax: operands in brackets (``?`` optional, ``*`` the last one repeats), attributes in
braces with a kind (int, float, str, bool, ints) and an optional default.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rusteeze.ir.types import TensorType

AttrValue = int | float | str | bool | tuple[int | str, ...]
Infer = Callable[..., TensorType | tuple[TensorType, ...]]
REQUIRED = object()
KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "ints": tuple}


@dataclass(frozen=True)
class Operand:
    name: str
    optional: bool = False
    variadic: bool = False


@dataclass(frozen=True)
class Attr:
    name: str
    kind: str
    default: Any = REQUIRED


@dataclass(frozen=True)
class OpDef:
    """A declared op. ``infer(*operand_types, **attrs)`` gives the result type(s) or raises TypeError;
    ``reference(*arrays, **attrs)`` computes them. Traits: ``commutative``, ``elementwise``,
    ``stateful`` (the reference also gets ``state=``), ``view`` (moves no data)."""

    name: str
    operands: tuple[Operand, ...]
    attrs: dict[str, Attr]
    infer: Infer = field(repr=False)
    reference: Callable[..., Any] | None = field(repr=False)
    traits: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpDef) and other.name == self.name

    def complete_attrs(self, given: dict[str, Any]) -> dict[str, AttrValue]:
        """Fill in defaults, normalise kinds; TypeError on unknown, missing or ill-typed attributes."""
        unknown = set(given) - set(self.attrs)
        if unknown:
            raise TypeError(f"{self.name} has no attribute {', '.join(sorted(unknown))}")
        out: dict[str, AttrValue] = {}
        for a in self.attrs.values():
            value = given.get(a.name, a.default)
            if value is REQUIRED:
                raise TypeError(f"{self.name} needs the attribute {a.name}")
            out[a.name] = _normalise(self.name, a, value)
        return out

    def check_arity(self, operands: Sequence[Any]) -> None:
        variadic = bool(self.operands) and self.operands[-1].variadic
        if len(operands) < len(self.operands) - variadic or (
            len(operands) > len(self.operands) and not variadic
        ):
            raise TypeError(f"{self.name} takes {len(self.operands)} operands, got {len(operands)}")
        for spec, given in zip(self.operands, operands, strict=False):
            if given is None and not spec.optional:
                raise TypeError(f"{self.name}: operand {spec.name} is missing")


def _normalise(op: str, attr: Attr, value: Any) -> AttrValue:
    if attr.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if attr.kind == "ints" and isinstance(value, list):
        value = tuple(value)
    fits = isinstance(value, KINDS[attr.kind]) and not (
        attr.kind == "int" and isinstance(value, bool)
    )
    if not fits:
        raise TypeError(f"{op}: attribute {attr.name} wants {attr.kind}, got {value!r}")
    checked: AttrValue = value
    return checked


OPS: dict[str, OpDef] = {}
_SIGNATURE = re.compile(r"\s*(\w+)\s*\(([^)]*)\)\s*(?:\{(.*)\})?\s*$", re.S)
_ATTR = re.compile(r"\s*(\w+)\s*:\s*(\w+)\s*(?:=\s*(.+))?$", re.S)


def declare(
    signature: str, *, infer: Infer, reference: Callable[..., Any] | None, traits: str = ""
) -> OpDef:
    """Register an op. ValueError when the signature cannot be read or the name is taken."""
    m = _SIGNATURE.match(signature)
    if not m:
        raise ValueError(f"cannot read op signature {signature!r}")
    name, operand_text, attr_text = m.groups()
    if name in OPS:
        raise ValueError(f"op {name} is declared twice")
    operands = tuple(
        Operand(t.rstrip("?*"), t.endswith("?"), t.endswith("*"))
        for t in (x.strip() for x in operand_text.split(","))
        if t
    )
    attrs: dict[str, Attr] = {}
    for part in (attr_text or "").split(","):
        if not part.strip():
            continue
        a = _ATTR.match(part)
        if not a or a[2] not in KINDS:
            raise ValueError(f"cannot read attribute {part!r} of {signature!r}")
        attrs[a[1]] = Attr(a[1], a[2], ast.literal_eval(a[3].strip()) if a[3] else REQUIRED)
    OPS[name] = OpDef(name, operands, attrs, infer, reference, frozenset(traits.split()))
    return OPS[name]
