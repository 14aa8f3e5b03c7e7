"""The wire format of tools: what may be called, and calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_TOOLS = 64
ToolName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class FunctionTool(msgspec.Struct, kw_only=True):
    """``parameters`` is a JSON schema; ``strict`` has no effect: it is always followed."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: FunctionTool


class ChosenFunction(msgspec.Struct, kw_only=True):
    name: ToolName


class ChosenTool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | ChosenTool


class CalledFunction(msgspec.Struct):
    """``arguments`` is JSON as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call in an answer, or repeated in the conversation that follows."""

    id: CallId
    function: CalledFunction
    type: Literal["function"]


class ToolCallDelta(msgspec.Struct):
    index: int
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
