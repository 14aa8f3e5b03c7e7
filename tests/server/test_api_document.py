"""docs/api.md names every route with what it needs, and every field of a request."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from starlette.routing import Route

from rusteeze.server import limits
from rusteeze.server.access import OPEN_PATHS
from rusteeze.server.app import ROUTES
from rusteeze.server.chat_schema import ChatRequest
from rusteeze.server.completion_schema import CompletionRequest
from rusteeze.server.responses_schema import ResponsesRequest

TEXT = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| `(GET|POST) ", line)]


def test_the_routes_and_which_need_the_key() -> None:
    written = {
        (method, path): key.strip() == "yes"
        for route, _, key in ROWS
        for method, path in re.findall(r"`(GET|POST) ([^`]+)`", route)
    }
    there = {
        (method, route.path.replace("{model:path}", "NAME")): route.path not in OPEN_PATHS
        for route in ROUTES
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert written == there


@pytest.mark.parametrize("schema", [ChatRequest, CompletionRequest, ResponsesRequest])
def test_the_fields(schema: type[msgspec.Struct]) -> None:
    fields = TEXT.partition("## Fields of a request")[2].partition("## Defaults")[0]
    named = {word for code in re.findall(r"`([^`]+)`", fields) for word in code.split(".")}
    assert {field.encode_name for field in msgspec.structs.fields(schema)} <= named


def test_the_counts() -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith("| `n`, prompts"))
    counts = [limits.MAX_CHOICES, limits.MAX_PROMPTS, limits.MAX_MESSAGES]
    assert [int(number) for number in re.findall(r"\d+", row)][:3] == counts
    assert f"| `logit_bias`, `stop` strings | {limits.MAX_BIASES} entries" in TEXT
    assert f"`top_logprobs` | {limits.MAX_TOP_LOGPROBS} |" in TEXT
