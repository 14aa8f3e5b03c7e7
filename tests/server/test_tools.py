"""Tools: what is called is always one of them, with arguments that follow its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live import Live, PacedExecutor, live
from server_process import Served, serve
from smollm2 import MARKS
from tiny_tokenizers import tokenizer

from rusteeze.runtime.template import ChatTemplate
from rusteeze.server.tool_schema import FunctionTool, Tool
from rusteeze.server.tools import CallFilter, ToolUse, parse_calls


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    """With room for the descriptions of tools, letter by letter."""
    with live(PacedExecutor(num_blocks=2048, max_model_len=4096, max_batched_tokens=512)) as server:
        yield server


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"does {name}", "parameters": parameters}}


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
ADD = tool("add", a=DIGIT, b=DIGIT)
PICK = tool("pick", colour={"$ref": "#/$defs/colour"})
PICK["function"]["parameters"]["$defs"] = {"colour": {"enum": ["red", "blue"]}}
LESS = str(tokenizer().encode("<", add_special_tokens=False)[0])


def check(call: Any) -> None:
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "add":
        assert set(arguments) == {"a", "b"}
        assert all(value in range(10) for value in arguments.values())
    else:
        assert call["function"]["name"] == "pick"
        assert arguments["colour"] in ("red", "blue")
    assert call["type"] == "function"
    assert call["id"].startswith("call_")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "pick"}}])
@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_must_be_made(choice: Any, seed: int, tiny: Live) -> None:
    fields = {
        "tools": [ADD, PICK], "tool_choice": choice, "max_tokens": 120, "parallel_tool_calls": False,
        "temperature": 1, "seed": seed,
    }  # fmt: skip
    (whole,) = tiny.chat(**fields).json()["choices"]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    (call,) = whole["message"]["tool_calls"]
    check(call)
    assert choice == "required" or call["function"]["name"] == "pick"
    events = tiny.chat(**fields, stream=True).events()
    deltas = [e["choices"][0]["delta"] for e in events]
    (streamed,) = [d["tool_calls"] for d in deltas if "tool_calls" in d]
    assert [c["function"] for c in streamed] == [call["function"]]
    assert "".join(d.get("content", "") for d in deltas) == ""
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_text_when_it_may_choose(tiny: Live) -> None:
    """The mock model's favourite words are no call; its text streams as ever."""
    fields = {"tools": [ADD], "max_tokens": 12}
    (whole,) = tiny.chat(**fields).json()["choices"]
    events = tiny.chat(**fields, stream=True).events()
    assert whole["finish_reason"] == "length"
    assert "tool_calls" not in whole["message"]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == whole["message"]["content"]
    assert not whole["message"]["content"].startswith("<")


def test_calls_when_it_chooses_them(tiny: Live) -> None:
    fields = {"tools": [ADD], "max_tokens": 200, "logit_bias": {LESS: 100}, "parallel_tool_calls": False}
    (whole,) = tiny.chat(**fields).json()["choices"]
    assert whole["finish_reason"] == "tool_calls"
    check(whole["message"]["tool_calls"][0])


def test_a_call_that_is_cut_off_is_text(tiny: Live) -> None:
    (whole,) = tiny.chat(tools=[ADD], tool_choice="required", max_tokens=14).json()["choices"]
    assert whole["finish_reason"] == "length"
    assert "<tool_call>\n".startswith(whole["message"]["content"][:12])
    assert "tool_calls" not in whole["message"]


def test_none_means_none(tiny: Live) -> None:
    assert tiny.chat(tools=[ADD], tool_choice="none").json()["choices"] == tiny.chat().json()["choices"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("x", a={"type": "nothing"})], "tool_choice": "required"}, "tools"),
        ({"tools": [ADD] * 65}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=str,
)
def test_refusals(fields: dict[str, Any], param: str, tiny: Live) -> None:
    answer = tiny.chat(**{"tools": [ADD], **fields})
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


def test_a_conversation_with_calls_and_results(tiny: Live) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages = [
        {"role": "user", "content": "1+2?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]  # fmt: skip
    assert tiny.chat(messages=messages, tools=[ADD]).status == 200


# What the model reads


KNOWS = "{% if tools %}TOOLS {{ tools[0].function.name }} {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
USE = ToolUse((Tool(type="function", function=FunctionTool(name="add")),), must_call=False, parallel=True)


def test_a_template_that_knows_tools_gets_them() -> None:
    assert USE.render(ChatTemplate(KNOWS), [{"role": "user", "content": "hi"}]) == "TOOLS add hi"


def test_one_that_does_not_gets_them_as_text() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "3"},
    ]  # fmt: skip
    text = USE.render(ChatTemplate(PLAIN), messages)
    assert text.startswith("[system: Be brief.\n\nYou may call functions")
    assert '"name": "add"' in text
    assert text.endswith(
        '[user: hi][assistant: <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>][tool: 3]'
    )


# What the model writes


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call> <tool_call>\\n{"}}\n</tool_call>'


def test_calls_are_read_whatever_their_arguments_hold() -> None:
    found = parse_calls(f"{CALL}\n{CALL}")
    assert found is not None
    assert [call.function.name for call in found] == ["f", "f"]
    assert json.loads(found[0].function.arguments) == {"a": "</tool_call> <tool_call>\n{"}
    assert parse_calls("text") is parse_calls(CALL[:-1]) is parse_calls("<tool_call>\n{") is None


@pytest.mark.parametrize("text", ["", "a", "<", "<b>", "a <tool_call>", CALL[:-1], "<tool_call>"])
def test_no_text_is_lost_in_any_cut(text: str) -> None:
    for cut in range(len(text) + 1):
        filter = CallFilter()
        shown = filter.push(text[:cut]) + filter.push(text[cut:])
        assert shown + filter.finish()[0] == text


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Served]:
    with serve(smollm2) as served:
        yield served


class TestRealModel:
    pytestmark = MARKS

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_official_client(self, stream: bool, real: Served) -> None:
        with openai.OpenAI(base_url=f"{real.url}/v1", api_key="x") as ask:
            fields = {
                "model": real.model, "messages": [{"role": "user", "content": "What is 2 plus 3?"}],
                "tools": [ADD], "tool_choice": "required", "max_tokens": 100, "temperature": 0,
                "parallel_tool_calls": False,
            }  # fmt: skip
            if stream:
                with ask.chat.completions.stream(**fields) as events:
                    done: Any = events.get_final_completion()
            else:
                done = ask.chat.completions.create(**fields)
        (call,) = done.choices[0].message.tool_calls
        assert done.choices[0].finish_reason == "tool_calls"
        check(call.model_dump())
