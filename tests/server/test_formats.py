"""Structured output, priorities and shared prefixes, as clients ask for them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from live import MODEL, Live, PacedExecutor, live, until
from server_process import Served, serve
from smollm2 import MARKS

COLOUR = {
    "type": "object", "additionalProperties": False, "required": ["colour", "count"],
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 9, "minimum": 0}},
}  # fmt: skip


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def text_of(server: Live, **fields: Any) -> str:
    (choice,) = server.chat(max_tokens=200, **fields).json()["choices"]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


def test_json_of_a_schema(tiny: Live) -> None:
    found = json.loads(text_of(tiny, response_format=schema_format(COLOUR)))
    assert found["colour"] in ("red", "blue")
    assert found["count"] in range(10)


def test_regex_lark_and_text(tiny: Live) -> None:
    pattern = "[a-f]{3}-(cat|world)"
    assert re.fullmatch(pattern, text_of(tiny, response_format={"type": "regex", "regex": pattern}))
    grammar = 'start: "a" | "(" start ")" | "b"'
    found = text_of(tiny, response_format={"type": "lark", "grammar": grammar}, logit_bias={})
    assert re.fullmatch(r"\(*[ab]\)*", found)
    assert tiny.chat(response_format={"type": "text"}).json()["choices"] == tiny.chat().json()["choices"]


def test_a_stream_of_it(tiny: Live) -> None:
    whole = text_of(tiny, response_format=schema_format(COLOUR))
    events = tiny.chat(response_format=schema_format(COLOUR), max_tokens=200, stream=True).events()
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == whole


def test_completions_have_it_too(tiny: Live) -> None:
    answer = tiny.complete(response_format={"type": "regex", "regex": "cat|world"}, n=3).json()
    assert {c["text"] for c in answer["choices"]} <= {"cat", "world"}


@pytest.mark.parametrize(
    "form",
    [
        schema_format({"type": "nothing"}),
        schema_format({"$ref": "http://127.0.0.1:1/schema.json"}),
        schema_format({"enum": ["a" * 30] * 3000}),
        {"type": "regex", "regex": "("},
        {"type": "regex", "regex": "(" * 5000 + ")" * 5000},
        {"type": "lark", "grammar": "start: nothing"},
        {"type": "lark", "grammar": "start"},
        {"type": "json_schema"},
        {"type": "poem"},
    ],
    ids=lambda form: str(form)[:50],
)
def test_grammars_that_are_none(form: dict[str, Any], tiny: Live) -> None:
    answer = tiny.chat(response_format=form)
    error = answer.json()["error"]
    assert answer.status == 400
    assert error["param"].startswith("response_format")
    assert not re.search("0x[0-9a-f]{6}", error["message"])
    assert tiny.chat().status == 200


def test_hostile_grammars_disturb_nobody() -> None:
    """While one client's grammar is compiled, others are answered."""
    with live(PacedExecutor()) as server:
        server.chat(response_format={"type": "regex", "regex": "a"})
        bomb = {"type": "regex", "regex": "((((a{1,60}){1,60}){1,60}){1,60}){1,60}"}
        asked = {"messages": [{"role": "user", "content": "a"}], "response_format": bomb, "max_tokens": 5}
        connection = server.connect("/v1/chat/completions", asked)
        slowest = 0.0
        for _ in range(10):
            start = time.monotonic()
            assert server.chat().status == 200
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 2
        connection.close()
        until(server.is_idle)


def test_the_evil_pattern_is_no_trouble(tiny: Live) -> None:
    start = time.monotonic()
    tiny.chat(response_format={"type": "regex", "regex": "(a+)+b"}, max_tokens=30)
    assert time.monotonic() - start < 2


def test_cached_tokens_and_salts() -> None:
    with live() as server:

        def cached(**fields: Any) -> int:
            usage = server.complete(prompt=[5, 6, 7, 8, 9, 10], max_tokens=1, **fields).json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert [cached(), cached(), cached(cache_salt="mine"), cached(cache_salt="mine")] == [0, 4, 0, 4]
        assert server.complete(cache_salt="é").status == 400
        assert server.complete(cache_salt="a" * 257).status == 400


def test_priorities() -> None:
    """Of those that wait, the one with the lower value goes first."""
    with live(PacedExecutor(pause=0.02), max_num_seqs=1) as server:
        fields = {"prompt": [5], "ignore_eos": True}
        running = server.connect("/v1/completions", {**fields, "max_tokens": 10})
        until(lambda: server.engine.scheduler.num_running == 1)
        late = server.connect("/v1/completions", {**fields, "max_tokens": 60, "priority": 5})
        until(lambda: server.service.engine.num_open == 2)
        start = time.monotonic()
        assert server.complete(max_tokens=1, priority=-5).status == 200
        assert time.monotonic() - start < 60 * 0.02
        for connection in (running, late):
            connection.close()


class Colour(pydantic.BaseModel):
    colour: Literal["red", "blue"]
    count: int


def test_parse_of_the_official_client(tiny: Live) -> None:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="x", max_retries=0) as ask:
        done = ask.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "a"}], response_format=Colour,
            max_tokens=250, temperature=0,
        )  # fmt: skip
    assert isinstance(done.choices[0].message.parsed, Colour)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Served]:
    with serve(smollm2) as served:
        yield served


class TestRealModel:
    pytestmark = MARKS

    def test_parse(self, real: Served) -> None:
        with openai.OpenAI(base_url=f"{real.url}/v1", api_key="x") as ask:
            done = ask.chat.completions.parse(
                model=real.model, messages=[{"role": "user", "content": "Pick a colour and a count."}],
                response_format=Colour, max_tokens=100, temperature=0,
            )  # fmt: skip
        assert isinstance(done.choices[0].message.parsed, Colour)

    def test_any_object(self, real: Served) -> None:
        with openai.OpenAI(base_url=f"{real.url}/v1", api_key="x") as ask:
            done = ask.chat.completions.create(
                model=real.model, messages=[{"role": "user", "content": 'Write {"name": "Ada"} as JSON.'}],
                response_format={"type": "json_object"}, max_tokens=300, temperature=0,
            )  # fmt: skip
        if done.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(done.choices[0].message.content or ""), dict)
        else:
            assert (done.choices[0].message.content or "").lstrip().startswith("{")
