"""What a grammar may contain, so that compiling it needs neither much stack nor much time.

Compilers of grammars follow references and nesting by recursion, and take time quadratic in their depth
to report an error at the bottom.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

MAX_RULES = 500
"""Rules of a Lark grammar, references of a schema."""
MAX_NESTING = 64

_TOO_DEEP = f"it is nested too deeply, in more than {MAX_NESTING} levels"
_SCHEMA = re.compile(r"%json\s*")
_DECODER = json.JSONDecoder()


def check_lark(source: str) -> None:
    """ValueError when there may be too many rules, or a schema within it is too much (``check_schema``).

    Every rule has a colon, so colons are counted, but for those of schemas behind ``%json``: JSON holds no
    line of its own that could be a rule."""
    parts = _SCHEMA.split(source)
    rules = parts[0].count(":")
    for part in parts[1:]:
        try:
            schema, end = _DECODER.raw_decode(part)
        except ValueError:  # not for us to report; its colons count
            rules += part.count(":")
            continue
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
        check_schema(schema)
        rules += part.count(":", end)
    if rules > MAX_RULES:
        raise ValueError(f"it has more than {MAX_RULES} rules (or colons in its texts)")


def check_schema(schema: object) -> None:
    """ValueError when a JSON value is nested too deeply or refers to others too often."""
    references, depth, level = 0, 0, [schema]
    while level:
        references += sum(isinstance(value, Mapping) and "$ref" in value for value in level)
        if references > MAX_RULES:
            raise ValueError(f"it has more than {MAX_RULES} references")
        if depth > MAX_NESTING:
            raise ValueError(_TOO_DEEP)
        level = [inner for value in level for inner in _inside(value)]
        depth += 1


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
