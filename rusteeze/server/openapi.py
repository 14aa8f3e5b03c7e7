"""``GET /openapi.json``, OpenAPI 3.2: made of the types that decode the requests, so it cannot drift from them.

What depends on the model is filled in: its name, and which token ids there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from rusteeze.server.chat_schema import ChatChunk, ChatRequest, ChatResponse
from rusteeze.server.common_schema import HealthBody, ModelCard, ModelList, VersionBody
from rusteeze.server.completion_schema import CompletionRequest, CompletionResponse
from rusteeze.server.errors import ErrorBody
from rusteeze.server.limits import MAX_PROMPTS
from rusteeze.server.responses_schema import (
    InputMessage,
    ResponseBody,
    ResponseEvent,
    ResponsesRequest,
)
from rusteeze.server.service import ServedModel, Service
from rusteeze.server.tokenizing import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChat,
    TokenizeResponse,
    TokenizerInfo,
    TokenizeText,
)
from rusteeze.version import own_version

REF = "#/components/schemas/{name}"
JSON = "application/json"
EVENTS = "text/event-stream"
TEXT = "text/plain"
Node = dict[str, Any]

_ERRORS = {
    400: "the request breaks the schema or a limit", 401: "the API key is missing or wrong",
    404: "there is no such model or path", 408: "the body took too long", 413: "the body is too large",
    415: "the body is not JSON", 429: "the queue is full", 500: "a fault of the server",
    503: "shutting down, or sick",
}  # fmt: skip
_BODY_ERRORS = (400, 401, 404, 408, 413, 415, 429, 500, 503)
_PLAIN_ERRORS = (401, 500)


@dataclass(frozen=True)
class Operation:
    """One method of one path. ``requests`` are alternatives; ``answers`` maps media types to a type."""

    path: str
    method: str
    summary: str
    answers: dict[str, type]
    requests: tuple[type[msgspec.Struct], ...] = ()
    errors: tuple[int, ...] = _PLAIN_ERRORS


OPERATIONS = (
    Operation(
        "/v1/chat/completions", "post", "Answer a conversation", {JSON: ChatResponse, EVENTS: ChatChunk},
        (ChatRequest,), _BODY_ERRORS,
    ),
    Operation(
        "/v1/completions", "post", "Continue a text", {JSON: CompletionResponse, EVENTS: CompletionResponse},
        (CompletionRequest,), _BODY_ERRORS,
    ),
    Operation(
        "/v1/responses", "post", "Answer a conversation, in the format of responses",
        {JSON: ResponseBody, EVENTS: ResponseEvent}, (ResponsesRequest,), _BODY_ERRORS,
    ),
    Operation(
        "/tokenize", "post", "Token ids of a text or a conversation", {JSON: TokenizeResponse},
        (TokenizeText, TokenizeChat), _BODY_ERRORS,
    ),
    Operation(
        "/detokenize", "post", "The text of token ids", {JSON: DetokenizeResponse},
        (DetokenizeRequest,), _BODY_ERRORS,
    ),
    Operation("/tokenizer_info", "get", "Special tokens and chat template", {JSON: TokenizerInfo}),
    Operation("/v1/models", "get", "The models, of which there is one", {JSON: ModelList}),
    Operation("/v1/models/{model}", "get", "One model", {JSON: ModelCard}, (), (401, 404, 500)),
    Operation("/health", "get", "Whether requests may be sent", {JSON: HealthBody}, (), (401, 500)),
    Operation("/health/live", "get", "Whether the process is well", {JSON: HealthBody}, (), (500,)),
    Operation("/health/ready", "get", "Whether requests may be sent", {JSON: HealthBody}, (), (500,)),
    Operation("/version", "get", "The version of the server", {JSON: VersionBody}),
    Operation("/metrics", "get", "Metrics for Prometheus", {TEXT: str}),
    Operation("/openapi.json", "get", "This document", {JSON: dict[str, Any]}),
)  # fmt: skip


async def openapi(request: Request) -> Response:
    service: Service = request.app.state.service
    document = build_document(service.model, request.app.state.has_key)
    return Response(msgspec.json.encode(document), media_type=JSON)


def build_document(model: ServedModel, has_key: bool) -> Node:
    """The document of a server with this model."""
    types = [*_types(), ErrorBody]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    document: Node = {
        "openapi": "3.2.0",
        "info": {"title": "Rusteeze", "version": own_version()},
        "paths": {},
        "components": {"schemas": components},
    }
    components[InputMessage.__name__]["required"].remove("type")  # of all items it alone may do without
    by_type = dict(zip(map(str, types), schemas, strict=True))
    for operation in OPERATIONS:
        path = document["paths"].setdefault(operation.path, {})
        path[operation.method] = _operation(operation, by_type)
    if has_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    _fill_in(document, model)
    return document


def _types() -> Iterator[Any]:
    for operation in OPERATIONS:
        yield from operation.requests
        yield from operation.answers.values()


def _operation(operation: Operation, by_type: Node) -> Node:
    answers = {media: _content(media, by_type[str(kind)]) for media, kind in operation.answers.items()}
    made: Node = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{operation.path}".replace("/", "_").strip("{}"),
        "responses": {"200": {"description": "done", "content": answers}},
    }
    error = {JSON: {"schema": by_type[str(ErrorBody)]}}
    for status in operation.errors:
        made["responses"][str(status)] = {"description": _ERRORS[status], "content": error}
    if operation.path.startswith("/health"):
        made["security"] = [] if operation.path != "/health" else None
        sick = {JSON: {"schema": by_type[str(HealthBody)]}}
        made["responses"]["503"] = {"description": _ERRORS[503], "content": sick}
    if operation.requests:
        bodies = [by_type[str(kind)] for kind in operation.requests]
        schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if "{model}" in operation.path:
        made["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return {key: value for key, value in made.items() if value is not None}


def _content(media: str, schema: Node) -> Node:
    """A stream is a sequence of events, each of which holds a document, but for the last, [DONE]."""
    if media != EVENTS:
        return {"schema": schema}
    event = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
    data = {"anyOf": [{"const": "[DONE]"}, event]}
    return {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": data}}}


def _fill_in(node: Any, model: ServedModel) -> None:
    """Replace the formats that stand for the model's own values, everywhere below ``node``."""
    if isinstance(node, list):
        for part in node:
            _fill_in(part, model)
    if not isinstance(node, dict):
        return
    for part in node.values():
        _fill_in(part, model)
    form = node.get("format")
    if form == "model-name":
        node.pop("format")
        node |= {"enum": [model.name], "examples": [model.name]}
    elif form == "token-id":
        node.pop("format")
        node["maximum"] = model.vocab_size - 1
    elif form == "prompts":
        kinds = node.pop("items")["anyOf"]
        node.clear()
        node["anyOf"] = [
            {"type": "array", "items": kind, "minItems": 1}
            | ({} if kind["type"] == "integer" else {"maxItems": MAX_PROMPTS})
            for kind in kinds
        ]
    elif form == "token-key":
        node.pop("format")
        node["pattern"] = below(model.vocab_size)


def below(bound: int) -> str:
    """A regular expression for the decimal numbers 0 … bound - 1, without leading zeros."""
    digits = str(bound)
    cases = ["0"] + [f"[1-9][0-9]{{{n}}}" for n in range(len(digits) - 1)]
    for position, digit in enumerate(digits):
        low = 1 if position == 0 else 0
        if int(digit) > low:
            rest = len(digits) - position - 1
            cases.append(f"{digits[:position]}[{low}-{int(digit) - 1}][0-9]{{{rest}}}")
    return f"^({'|'.join(cases)})$"
