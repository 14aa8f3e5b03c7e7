"""``/v1/responses`` as the official client sees it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from live import MODEL, Live, PacedExecutor, live
from openai.types import responses as types
from pydantic import BaseModel

TOOL: Any = {
    "type": "function", "name": "add", "parameters": {
        "type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"],
        "additionalProperties": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    """With room for the descriptions of tools, letter by letter."""
    with live(PacedExecutor(num_blocks=2048, max_model_len=4096, max_batched_tokens=512)) as server:
        yield server


@pytest.fixture
def ask(tiny: Live) -> Any:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        yield client.responses


def plain(tiny: Live, **fields: Any) -> Any:
    return tiny.ask("POST", "/v1/responses", {"model": MODEL, "input": "the cat", "temperature": 0, **fields})


def test_it_says_what_the_chat_says(ask: Any, tiny: Live) -> None:
    done = ask.create(model=MODEL, input="the cat", temperature=0, max_output_tokens=8)
    chat = tiny.chat().json()
    assert done.output_text == chat["choices"][0]["message"]["content"]
    assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert done.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert (done.usage.output_tokens, done.usage.total_tokens) == (8, done.usage.input_tokens + 8)
    assert (done.object, done.error, done.tools) == ("response", None, [])
    types.Response.model_validate(done.model_dump(), strict=False)


def test_a_conversation_is_that_of_the_chat(ask: Any, tiny: Live) -> None:
    """Items of every kind, with and without their type, in the order of the chat's messages."""
    done = ask.create(
        model=MODEL, instructions="be brief", temperature=0, max_output_tokens=8, store=False,
        input=[
            {"role": "user", "content": "the cat"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
            {"type": "function_call", "call_id": "c2", "name": "add", "arguments": '{"a": 2}'},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
            {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
        ],
    )  # fmt: skip
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "add", "arguments": json.dumps({"a": n})}}
        for n in (1, 2)
    ]
    chat = tiny.chat(messages=[
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "a"}, {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "3"}, {"role": "user", "content": "b"},
    ])  # fmt: skip
    assert done.output_text == chat.json()["choices"][0]["message"]["content"]
    assert done.usage.input_tokens == chat.json()["usage"]["prompt_tokens"]
    assert done.instructions == "be brief"


def test_the_events_of_a_text(ask: Any) -> None:
    fields: Any = {"model": MODEL, "input": "the cat", "temperature": 0, "max_output_tokens": 12}
    whole = ask.create(**fields)
    events = list(ask.create(**fields, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    deltas = [e.delta for e in events if isinstance(e, types.ResponseTextDeltaEvent)]
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    middle = ["output_text.delta"] * len(deltas)
    assert kinds == [f"response.{kind}" for kind in begin + middle + end]
    assert "".join(deltas) == whole.output_text
    last = events[-1]
    assert isinstance(last, types.ResponseIncompleteEvent)
    assert last.response.output_text == whole.output_text
    assert last.response.usage.total_tokens == whole.usage.total_tokens
    assert events[0].response.status == "in_progress"
    assert {e.response.id for e in events if hasattr(e, "response")} == {last.response.id}
    for event in events:  # every field that the client's types want is there
        type(event).model_validate(event.model_dump())


def test_the_helper_for_streams(ask: Any) -> None:
    with ask.stream(
        model=MODEL, input="the cat", text={"format": {"type": "json_object"}}, temperature=0,
        max_output_tokens=20,
    ) as stream:  # fmt: skip
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert texts[-1].startswith("{")


class Size(BaseModel):
    size: int


def test_parse(ask: Any) -> None:
    done = ask.parse(model=MODEL, input="x", text_format=Size, temperature=0.5, max_output_tokens=200)
    assert done.status == "completed"
    assert isinstance(done.output_parsed, Size)
    assert done.text.format.type == "json_schema"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add"}])
def test_calls(choice: Any, ask: Any) -> None:
    fields: Any = {
        "model": MODEL, "input": "x", "tools": [TOOL], "tool_choice": choice, "temperature": 0,
        "parallel_tool_calls": False, "max_output_tokens": 200,
    }  # fmt: skip
    (call,) = ask.create(**fields).output
    assert (call.type, call.name, call.status) == ("function_call", "add", "completed")
    assert json.loads(call.arguments)["a"] in (1, 22)
    events = list(ask.create(**fields, stream=True))
    assert [e.type.removeprefix("response.") for e in events] == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[3].delta == events[4].arguments == call.arguments
    assert events[-1].response.output[0].arguments == call.arguments


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"store": True}, "store"),
        ({"conversation": "conv_1"}, "conversation"), ({"background": True}, "background"),
    ],
)  # fmt: skip
def test_nothing_is_stored(fields: dict[str, Any], param: str, ask: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask.create(model=MODEL, input="x", **fields)
    assert (caught.value.param, caught.value.code) == (param, "not_stored")


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []}, {"input": ""}, {"input": [{"role": "user"}]}, {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1/x"}]}]},
        {"max_output_tokens": 0}, {"text": {"format": {"type": "regex", "regex": "a"}}}, {"model": None},
        {"tools": [{"type": "web_search"}]}, {"tools": [TOOL], "text": {"format": {"type": "json_object"}}},
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, {"input": [None, {"role": "user"}]},
    ],
)  # fmt: skip
def test_refusals(fields: dict[str, Any], tiny: Live) -> None:
    answer = plain(tiny, **fields)
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_template_is_never_taken_from_a_request(tiny: Live) -> None:
    fields: dict[str, Any] = {"max_output_tokens": 4}
    wanted = plain(tiny, **fields).json()["output"][0]["content"]
    answer = plain(tiny, chat_template="{{ 1/0 }}", chat_template_kwargs={"messages": []}, **fields)
    assert answer.json()["output"][0]["content"] == wanted
    assert "chat_template" in answer.headers["warning"]


def test_bodies_that_are_none(tiny: Live) -> None:
    for body in (b"", b"[]", b"{", b"[" * 100_000):
        assert tiny.ask("POST", "/v1/responses", body).status == 400


def test_unknown_fields_are_named(tiny: Live) -> None:
    assert "reasoning" in plain(tiny, reasoning={"effort": "low"}, max_output_tokens=1).headers["warning"]


def test_a_fault_on_the_way_is_the_clients_error_event(tiny: Live) -> None:
    steps = iter(range(100))

    def fail() -> None:
        if next(steps) == 3:
            raise RuntimeError("told to")

    tiny.executor.before_step, tiny.executor.pause = fail, 0.02
    try:
        with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
            events = list(client.responses.create(model=MODEL, input="x", stream=True, temperature=0))
    finally:
        tiny.executor.before_step, tiny.executor.pause = lambda: None, 0.0
    assert isinstance(events[-1], types.ResponseErrorEvent)
    assert (events[-1].message, events[-1].code) == ("internal error", "internal_error")


def test_an_empty_answer_is_still_a_message(ask: Any) -> None:
    done = ask.create(model=MODEL, input="x", max_output_tokens=1, temperature=0)
    assert [item.type for item in done.output] == ["message"]
