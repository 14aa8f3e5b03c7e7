"""The wire format of ``/v1/responses``: what is asked for, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rusteeze.server.chat_schema import TokenLogprob
from rusteeze.server.formats import JsonObjectFormat, TextFormat
from rusteeze.server.limits import MAX_MESSAGES, MAX_TOKENS
from rusteeze.server.sampling_fields import ModelName, Text
from rusteeze.server.tool_schema import MAX_TOOLS, CallId, ToolName

MAX_METADATA = 16
No = Annotated[bool, Meta(extra_json_schema={"enum": [False]})]

# What is asked for


class InputText(msgspec.Struct, kw_only=True, tag="input_text", tag_field="type"):
    text: str


class OutputText(msgspec.Struct, kw_only=True, tag="output_text", tag_field="type"):
    """A part of an earlier answer."""

    text: str


Parts = Annotated[list[InputText | OutputText], Meta(max_length=MAX_MESSAGES)]


class InputMessage(msgspec.Struct, kw_only=True, tag="message", tag_field="type"):
    """A turn of the conversation. Its type may be left out: rusteeze.server.responses adds it."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts


class InputCall(msgspec.Struct, kw_only=True, tag="function_call", tag_field="type"):
    """A call of an earlier answer."""

    call_id: CallId
    name: str
    arguments: str


class InputCallOutput(msgspec.Struct, kw_only=True, tag="function_call_output", tag_field="type"):
    """What a call returned."""

    call_id: CallId
    output: str | Parts


InputItem = InputMessage | InputCall | InputCallOutput
InputItems = Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]


class ResponsesSchemaFormat(msgspec.Struct, kw_only=True, tag="json_schema", tag_field="type"):
    """``strict`` has no effect: the schema is always followed to the letter."""

    name: Annotated[str, Meta(max_length=64)]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    format: TextFormat | JsonObjectFormat | ResponsesSchemaFormat | None = None


class ResponsesTool(msgspec.Struct, kw_only=True):
    """``parameters`` is a JSON schema; ``strict`` has no effect: it is always followed."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesChoice(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    name: ToolName


ResponsesToolChoice = Literal["none", "auto", "required"] | ResponsesChoice


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """As in the OpenAI API, as far as nothing has to be stored for it."""

    model: ModelName
    input: Annotated[str, Meta(min_length=1)] | InputItems
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: No | None = None
    background: No | None = None
    previous_response_id: None = None
    conversation: None = None
    metadata: Annotated[dict[str, Text], Meta(max_length=MAX_METADATA)] | None = None
    user: Text | None = None


# What is answered

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class AnswerText(msgspec.Struct, tag="output_text", tag_field="type"):
    text: str
    annotations: list[str] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)


class MessageItem(msgspec.Struct, tag="message", tag_field="type"):
    id: str
    content: list[AnswerText]
    status: ItemStatus
    role: Literal["assistant"] = "assistant"


class CallItem(msgspec.Struct, tag="function_call", tag_field="type"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


Item = MessageItem | CallItem


class InputTokensDetails(msgspec.Struct):
    """``cached_tokens`` of the input were computed for earlier requests."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponsesUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"]


class ResponseBody(msgspec.Struct, kw_only=True):
    """An answer, or how far it has come; the fields from ``instructions`` on repeat the request."""

    id: str
    created_at: int
    model: str
    status: ItemStatus
    output: list[Item]
    usage: ResponsesUsage | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    text: TextConfig
    tools: list[ResponsesTool]
    tool_choice: ResponsesToolChoice
    parallel_tool_calls: bool
    metadata: dict[str, str]
    object: Literal["response"] = "response"
    error: None = None
    previous_response_id: None = None
    background: bool = False
    store: bool = False


# The events of a stream


class ResponseEvent(msgspec.Struct, kw_only=True):
    """``type`` names the event; what it brings depends on that. ``sequence_number`` counts from 0."""

    type: str
    sequence_number: int


class StatusEvent(ResponseEvent, kw_only=True):
    response: ResponseBody


class ItemEvent(ResponseEvent, kw_only=True):
    output_index: int
    item: Item


class PartEvent(ResponseEvent, kw_only=True):
    output_index: int
    item_id: str
    content_index: int
    part: AnswerText


class TextDeltaEvent(ResponseEvent, kw_only=True):
    output_index: int
    item_id: str
    content_index: int
    delta: str
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)


class TextDoneEvent(ResponseEvent, kw_only=True):
    output_index: int
    item_id: str
    content_index: int
    text: str
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)


class ArgumentsDeltaEvent(ResponseEvent, kw_only=True):
    output_index: int
    item_id: str
    delta: str


class ArgumentsDoneEvent(ResponseEvent, kw_only=True):
    output_index: int
    item_id: str
    name: str
    arguments: str


class FailureEvent(ResponseEvent, kw_only=True):
    code: str | None
    message: str
    param: str | None
