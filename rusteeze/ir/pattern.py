"""Patterns over graphs, written as the text that they match.

``mul(silu(g), u)`` matches that expression and captures the values ``g`` and ``u``. The language:

* ``x`` captures any value, ``@w`` a static one that is no scalar constant, ``_`` an absent operand;
* ``0.5`` is a constant node of that value, ``?eps`` a constant node whose value is captured;
* ``mean(x) {axis=-1, keepdim=?k}`` constrains or captures attributes, unnamed ones are free.

A name that occurs twice must capture the same thing. Operands of commutative ops match in any order.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rusteeze.ir.graph import Node, Value
from rusteeze.ir.op import OPS, AttrValue

RELATIVE_TOLERANCE = (
    1e-6  # of number literals: frameworks spell the same constant to 10 digits or to 17
)


@dataclass(frozen=True)
class Capture:
    name: str
    static: bool = False


@dataclass(frozen=True)
class Missing:
    pass


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Hole:
    name: str


@dataclass(frozen=True)
class Call:
    op: str
    args: tuple[Pattern, ...]
    attrs: tuple[tuple[str, AttrValue | Hole], ...] = ()


Pattern = Capture | Missing | Number | Hole | Call


@dataclass(frozen=True)
class Bindings:
    """What a match captured: values by variable, numbers and attributes by hole."""

    values: dict[str, Value] = field(default_factory=dict)
    attrs: dict[str, AttrValue] = field(default_factory=dict)

    def with_value(self, name: str, value: Value) -> Bindings | None:
        if name in self.values:
            return self if self.values[name] is value else None
        return Bindings({**self.values, name: value}, self.attrs)

    def with_attr(self, name: str, value: AttrValue) -> Bindings | None:
        if name in self.attrs:
            return self if same_attr(self.attrs[name], value) else None
        return Bindings(self.values, {**self.attrs, name: value})


def same_attr(a: AttrValue, b: AttrValue) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
    return type(a) is type(b) and a == b


def constant_value(value: Value | None) -> float | None:
    """The number that every element of ``value`` is, if that is plain from the graph."""
    while value is not None and value.op in ("cast", "broadcast_to", "reshape"):
        assert value.node is not None
        value = value.node.operands[0]
    if value is None or value.op != "const":
        return None
    assert value.node is not None
    number = value.node.attrs["value"]
    return number if isinstance(number, float) else None


def matches(
    pattern: Pattern, value: Value | None, static: set[Value], found: Bindings
) -> Iterator[Bindings]:
    """All ways in which ``pattern`` matches the expression that computes ``value``."""
    match pattern:
        case Missing():
            if value is None:
                yield found
        case Capture(name, wants_static):
            if value is not None and (not wants_static or _is_parameter(value, static)):
                yield from _some(found.with_value(name, value))
        case Number(number):
            got = constant_value(value)
            if got is not None and math.isclose(got, number, rel_tol=RELATIVE_TOLERANCE):
                yield found
        case Hole(name):
            got = constant_value(value)
            if got is not None:
                yield from _some(found.with_attr(name, got))
        case Call():
            yield from _call_matches(pattern, value, static, found)


def _is_parameter(value: Value, static: set[Value]) -> bool:
    return value in static and constant_value(value) is None


def _some(found: Bindings | None) -> Iterator[Bindings]:
    if found is not None:
        yield found


def _call_matches(
    call: Call, value: Value | None, static: set[Value], found: Bindings
) -> Iterator[Bindings]:
    if value is None or value.op != call.op or value.index:
        return
    node = value.node
    assert node is not None
    if len(node.operands) != len(call.args):
        return
    bound = _match_attrs(call, node, found)
    if bound is None:
        return
    yield from _operand_matches(call.args, node.operands, static, bound)
    if "commutative" in node.op.traits and node.operands[0] is not node.operands[1]:
        yield from _operand_matches(call.args, node.operands[::-1], static, bound)


def _match_attrs(call: Call, node: Node, found: Bindings) -> Bindings | None:
    bound: Bindings | None = found
    for name, wanted in call.attrs:
        got = node.attrs[name]
        if isinstance(wanted, Hole):
            bound = bound.with_attr(wanted.name, got) if bound else None
        elif not same_attr(wanted, got):
            return None
    return bound


def _operand_matches(
    patterns: tuple[Pattern, ...], operands: list[Value | None], static: set[Value], found: Bindings
) -> Iterator[Bindings]:
    if not patterns:
        yield found
        return
    for bound in matches(patterns[0], operands[0], static, found):
        yield from _operand_matches(patterns[1:], operands[1:], static, bound)


class PatternError(ValueError):
    """Text that is no pattern."""


_TOKEN = re.compile(
    r"\s*(?:(?P<hole>\?\w+)|(?P<static>@\w+)|(?P<number>-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
    r"|(?P<literal>'[^']*'|\[[^\]]*\])|(?P<name>\w+)|(?P<mark>[(){},=]))"
)


class PatternParser:
    """Reads one pattern. PatternError when the text is no pattern, or names an unknown op."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            m = _TOKEN.match(text, at)
            if not m:
                raise self.fail(f"cannot read {text[at:]!r}")
            self.tokens.append((str(m.lastgroup), m[str(m.lastgroup)]))
            at = m.end()

    def fail(self, why: str) -> PatternError:
        return PatternError(f"{why} in pattern {self.text!r}")

    def parse(self) -> Pattern:
        pattern = self._pattern()
        if self.tokens:
            raise self.fail(f"unexpected {self.tokens[0][1]!r}")
        return pattern

    def _take(self) -> tuple[str, str]:
        if not self.tokens:
            raise self.fail("unexpected end")
        return self.tokens.pop(0)

    def _accept(self, mark: str) -> bool:
        if self.tokens and self.tokens[0] == ("mark", mark):
            self.tokens.pop(0)
            return True
        return False

    def _pattern(self) -> Pattern:
        kind, text = self._take()
        match kind:
            case "hole":
                return Hole(text[1:])
            case "static":
                return Capture(text[1:], static=True)
            case "number":
                return Number(float(text))
            case "name" if self._accept("("):
                return self._call(text)
            case "name":
                return Missing() if text == "_" else Capture(text)
        raise self.fail(f"unexpected {text!r}")

    def _call(self, op: str) -> Call:
        args: list[Pattern] = []
        while not self._accept(")"):
            args.append(self._pattern())
            self._accept(",")
        attrs: list[tuple[str, AttrValue | Hole]] = []
        if self._accept("{"):
            while not self._accept("}"):
                attrs.append(self._attr(op))
                self._accept(",")
        return self._checked(Call(op, tuple(args), tuple(attrs)))

    def _attr(self, op: str) -> tuple[str, AttrValue | Hole]:
        _, name = self._take()
        if not self._accept("="):
            raise self.fail(f"expected {name}=VALUE")
        kind, text = self._take()
        if kind == "hole":
            return name, Hole(text[1:])
        value: Any = ast.literal_eval(text)
        if isinstance(value, list):
            value = tuple(value)
        declared = OPS[op].attrs.get(name) if op in OPS else None
        return name, float(value) if declared and declared.kind == "float" else value

    def _checked(self, call: Call) -> Call:
        if call.op not in OPS:
            raise self.fail(f"unknown op {call.op}")
        definition = OPS[call.op]
        try:
            definition.check_arity([None if isinstance(a, Missing) else a for a in call.args])
        except TypeError as e:
            raise self.fail(str(e)) from None
        for name, _ in call.attrs:
            if name not in definition.attrs:
                raise self.fail(f"{call.op} has no attribute {name}")
        return call


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` spells; PatternError if none."""
    return PatternParser(text).parse()


def captured_names(pattern: Pattern) -> tuple[set[str], set[str]]:
    """Names of the variables and of the holes in a pattern."""
    match pattern:
        case Capture(name, _):
            return {name}, set()
        case Hole(name):
            return set(), {name}
        case Call(_, args, attrs):
            values: set[str] = set()
            holes = {v.name for _, v in attrs if isinstance(v, Hole)}
            for arg in args:
                v, h = captured_names(arg)
                values |= v
                holes |= h
            return values, holes
    return set(), set()
