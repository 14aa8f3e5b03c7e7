"""What counts as too much of a grammar, before any compiler sees it."""

from __future__ import annotations

import json

import pytest

from rusteeze.runtime.grammar_size import MAX_NESTING, MAX_RULES, check_lark


def tool(number: int, properties: int) -> str:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(properties)}}
    return f't{number}: "(" t{number}_arguments ")"\nt{number}_arguments: %json {json.dumps(schema)}'


def nested(depth: int) -> str:
    return "%json " + '{"items": ' * depth + "true" + "}" * depth


def test_schemas_of_many_tools_are_no_rules():
    check_lark("start: t0\n" + "\n".join(tool(n, 40) for n in range(64)))


@pytest.mark.parametrize("count", [MAX_RULES + 1, 3000])
def test_rules_around_schemas_count(count):
    rules = "\n".join(f'a{n}: "a"' for n in range(count - 2))
    check_lark("\n".join(f'a{n}: "a"' for n in range(MAX_RULES - 2)) + "\n" + tool(0, 3))
    with pytest.raises(ValueError, match="rules"):
        check_lark(rules + "\n" + tool(0, 3))
    with pytest.raises(ValueError, match="rules"):
        check_lark(tool(0, 3) + "\n" + rules)


def test_a_schema_within_a_grammar_has_the_limits_of_a_schema():
    check_lark("start: " + nested(MAX_NESTING - 1))
    with pytest.raises(ValueError, match="nested"):
        check_lark("start: " + nested(MAX_NESTING + 2))


def test_what_is_no_schema_counts_as_it_stands():
    with pytest.raises(ValueError, match="rules"):
        check_lark("start: %json {" + ":" * MAX_RULES)
    with pytest.raises(ValueError, match="nested"):
        check_lark("start: " + nested(100_000))
