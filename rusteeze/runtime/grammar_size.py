"""What a grammar may contain, so that compiling it needs neither much stack nor much time.

Compilers of grammars follow references and nesting by recursion, and take time quadratic in their depth
to report an error at the bottom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_RULES = 500
"""Rules of a Lark grammar, references of a schema."""
MAX_NESTING = 64


def check_lark(source: str) -> None:
    """ValueError when there may be too many rules. Every rule has a colon, so colons are counted."""
    if source.count(":") > MAX_RULES:
        raise ValueError(f"it has more than {MAX_RULES} rules (or colons in its texts)")


def check_schema(schema: object) -> None:
    """ValueError when a JSON value is nested too deeply or refers to others too often."""
    references, depth, level = 0, 0, [schema]
    while level:
        references += sum(isinstance(value, Mapping) and "$ref" in value for value in level)
        if references > MAX_RULES:
            raise ValueError(f"it has more than {MAX_RULES} references")
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested too deeply, in more than {MAX_NESTING} levels")
        level = [inner for value in level for inner in _inside(value)]
        depth += 1


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
