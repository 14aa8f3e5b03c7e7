"""What is wrong with a setting, in words: msgspec speaks of types and JSON paths, people of settings and values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ERROR = re.compile(r"Expected `(?P<kind>\w+)(?: \| null)?`(?P<rule>.*?)(?:, got `(?P<got>\w+)`)? - at `\$\.(?P<path>[^`]+)`")
_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false",
    "array": "a list", "object": "a section with settings",
}  # fmt: skip
_RULES = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_SECRET = "server.api_key"


def sentence(error: str, settings: Mapping[str, Any]) -> str:
    """A validation error of ``settings`` as a sentence; the error as it is when it is of no known form."""
    found = _ERROR.fullmatch(error)
    if found is None:
        return error
    path = found["path"]
    if path == _SECRET:
        return f"{path} must be text without spaces, and not empty"
    kind = _KINDS.get(found["kind"], found["kind"])
    return f"{path} is {_value(settings, path)!r}; it must be {kind}{_rule(found['rule'].strip())}"


def _rule(rule: str) -> str:
    operator, _, bound = rule.partition(" ")
    if operator in _RULES:
        return f", {_RULES[operator]} {bound}"
    pattern = re.fullmatch(r"matching regex '\^\((.*)\)\$'", rule)
    return f": one of {pattern[1].replace('|', ', ')}" if pattern else ""


def _value(settings: Any, path: str) -> Any:
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else settings
    return settings
