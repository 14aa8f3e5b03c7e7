"""Calling tools: what the model is told, the grammar it is held to, and the calls in what it says.

A call is written as many models were trained to write it:

    <tool_call>
    {"name": "add", "arguments": {"a": 1}}
    </tool_call>

With tool_choice "auto" an answer is either text that does not begin with ``<`` or calls; with "required", or a
named tool, it is calls. Arguments always follow the tool's schema.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rusteeze.runtime.params import Grammar
from rusteeze.runtime.template import ChatTemplate
from rusteeze.server.errors import bad_request
from rusteeze.server.tool_schema import CalledFunction, ChosenTool, Tool, ToolCall, ToolChoice

OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>"
_COMPACT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

_INSTRUCTIONS = """\
You may call functions to answer. They are, as JSON schemas:
{tools}
To call one, write only this, with its name and arguments:
<tool_call>
{{"name": "NAME", "arguments": {{ARGUMENTS}}}}
</tool_call>"""


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request and how many calls of them the answer must or may have."""

    tools: tuple[Tool, ...]
    must_call: bool
    parallel: bool

    @staticmethod
    def of(
        tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
    ) -> ToolUse | None:
        """None when nothing may be called. ApiError 400 when the chosen tool does not exist."""
        if not tools or choice == "none":
            return None
        if isinstance(choice, ChosenTool):
            chosen = [t for t in tools if t.function.name == choice.function.name]
            if not chosen:
                raise bad_request("tool_choice names a tool that is not in tools", "tool_choice")
            return ToolUse((chosen[0],), must_call=True, parallel=False)
        return ToolUse(tuple(tools), choice == "required", parallel is not False)

    def grammar(self) -> Grammar:
        """ApiError 400 when the schemas are too large."""
        calls = "call" + (" (/\\n/ call)*" if self.parallel else "")
        rules = [f"start: {calls}" if self.must_call else f"start: text | {calls}"]
        if not self.must_call:
            rules.append("text: /([^<](?s:.*))?/")
        names = [f"tool_{index}" for index in range(len(self.tools))]
        rules.append(f"call: {json.dumps(OPEN)} ({' | '.join(names)}) {json.dumps(CLOSE)}")
        for name, tool in zip(names, self.tools, strict=True):
            head = json.dumps(f'{{"name": "{tool.function.name}", "arguments": ')
            rules.append(f'{name}: {head} {name}_arguments "}}"')
            schema = {"type": "object", **(tool.function.parameters or {}), "x-guidance": _COMPACT}
            rules.append(f"{name}_arguments: %json {json.dumps(schema)}")
        try:
            return Grammar("lark", "\n".join(rules))
        except ValueError as error:
            raise bad_request(str(error), "tools", "invalid_grammar") from None

    def render(self, template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
        """The prompt. A template that knows nothing of tools gets them as text."""
        tools = msgspec.to_builtins(self.tools)
        text = template.render(messages, tools=tools)
        return text if text != template.render(messages) else template.render(self._told(messages))

    def _told(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        listed = "\n".join(json.dumps(msgspec.to_builtins(t.function)) for t in self.tools)
        instructions = _INSTRUCTIONS.format(tools=listed)
        first = messages[0] if messages[0]["role"] == "system" else None
        rest = messages[1:] if first else messages
        system = f"{first['content']}\n\n{instructions}" if first else instructions
        return [{"role": "system", "content": system}, *map(_as_text, rest)]


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message of the conversation with its calls as the model wrote them."""
    calls = message.get("tool_calls") or ()
    written = [OPEN + json.dumps(call["function"]) + CLOSE for call in calls]
    text = "\n".join([*([message["content"]] if message["content"] else []), *written])
    return {"role": message["role"], "content": text}


def template_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls of the conversation as templates expect them: arguments are values, not text."""
    return [
        {
            "id": call.id, "type": "function",
            "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
        }
        for call in calls
    ]  # fmt: skip


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text  # what a client sends back is not ours to judge


def parse_calls(text: str) -> list[ToolCall] | None:
    """The calls that a whole answer consists of; None when it is text, or was cut off in a call."""
    calls, position = [], 0
    while text.startswith(OPEN, position):
        try:
            found, position = json.JSONDecoder().raw_decode(text, position + len(OPEN))
        except (ValueError, RecursionError):
            return None
        if not text.startswith(CLOSE, position):
            return None
        position = min(len(text), position + len(CLOSE) + 1)
        function = CalledFunction(found["name"], json.dumps(found["arguments"], ensure_ascii=False))
        calls.append(ToolCall(f"call_{uuid.uuid4().hex[:24]}", function, "function"))
    return calls or None


class CallFilter:
    """Streamed text of one choice: what is not a call passes, what may be one is kept until the end."""

    def __init__(self) -> None:
        self._text = ""
        self._passes = False

    def push(self, text: str) -> str:
        """The text that may be shown."""
        if self._passes:
            return text
        self._text += text
        if self._text and not self._text.startswith("<"):
            self._passes = True
            return self._text
        return ""

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Text that was kept but is no call, and the calls."""
        if self._passes:
            return "", []
        calls = parse_calls(self._text)
        return ("", calls) if calls else (self._text, [])
