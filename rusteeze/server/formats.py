"""``response_format``: what an answer must look like, and the grammar that holds the engine to it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rusteeze.runtime.params import MAX_GRAMMAR_CHARACTERS, Grammar
from rusteeze.server.errors import bad_request

Source = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]


class TextFormat(msgspec.Struct, tag="text", tag_field="type"):
    """Anything."""


class JsonObjectFormat(msgspec.Struct, tag="json_object", tag_field="type"):
    """Some JSON object."""


class JsonSchema(msgspec.Struct, kw_only=True):
    """``strict`` has no effect: the schema is always followed to the letter."""

    name: Annotated[str, Meta(max_length=64)]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag="json_schema", tag_field="type"):
    json_schema: JsonSchema


class RegexFormat(msgspec.Struct, tag="regex", tag_field="type"):
    """The whole answer matches a regular expression, of the kind that takes linear time."""

    regex: Source


class LarkFormat(msgspec.Struct, tag="lark", tag_field="type"):
    """The answer is a sentence of a Lark grammar."""

    grammar: Source


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | LarkFormat


def grammar_of(form: ResponseFormat | None) -> Grammar | None:
    """ApiError 400 when the grammar is too large."""
    match form:
        case JsonObjectFormat():
            return Grammar("json_object")
        case JsonSchemaFormat():
            return schema_grammar(form.json_schema.schema, "response_format")
        case RegexFormat():
            return Grammar("regex", form.regex)
        case LarkFormat():
            return Grammar("lark", form.grammar)
    return None


def schema_grammar(schema: dict[str, Any], param: str) -> Grammar:
    """The grammar of a JSON schema. ApiError 400 when it is too large."""
    try:
        return Grammar("json_schema", msgspec.json.encode(schema).decode())
    except ValueError as error:
        raise bad_request(str(error), param, "invalid_grammar") from None
