"""Lists of passes as text: ``canonicalize,fuse{anchor=linear}``; also by the names of pipelines."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

from rusteeze.errors import UserError
from rusteeze.passes.pass_base import Pass
from rusteeze.passes.pipeline import PASS_TYPES, fusing, lowering, raising, rounding

PIPELINES: dict[str, Callable[[], list[Pass]]] = {
    "raising": raising,
    "lowering": lowering,
    "rounding": partial(rounding, "int8", "bf16"),
    "fusing": fusing,
}
_ITEM = re.compile(r"\s*([\w-]+)\s*(?:\{([^}]*)\})?\s*(?:,|$)")


def parse_passes(text: str) -> list[Pass]:
    """The passes that ``text`` lists. UserError on an unknown pass or option, or a bad value."""
    return list(_parse(text))


def known_names() -> list[str]:
    return [p.name for p in PASS_TYPES] + list(PIPELINES)


def _parse(text: str) -> Iterator[Pass]:
    at = 0
    while at < len(text):
        m = _ITEM.match(text, at)
        if not m:
            raise UserError(f"cannot read {text[at:]!r} in the list of passes")
        at = m.end()
        if m[1] in PIPELINES and m[2] is None:
            yield from PIPELINES[m[1]]()
        else:
            yield _make(m[1], _options(m[2] or ""))


def _make(name: str, options: dict[str, Any]) -> Pass:
    found = {p.name: p for p in PASS_TYPES}.get(name)
    if found is None:
        raise UserError(f"no pass {name!r}; there are {', '.join(known_names())}")
    known = {f.name: f for f in fields(found) if f.metadata.get("option", True)}
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    for option, value in options.items():
        if type(value).__name__ != known[option].type:
            raise UserError(f"{name}: {option} must be of type {known[option].type}, not {value!r}")
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error


def _options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, sign, value = (s.strip() for s in part.partition("="))
        if not sign:
            raise UserError(f"expected OPTION=VALUE, found {part!r}")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """A Python literal; a bare word is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
