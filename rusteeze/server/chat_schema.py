"""The wire format of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rusteeze.server.common_schema import UsageBody
from rusteeze.server.limits import MAX_MESSAGES, MAX_TOKENS, MAX_TOP_LOGPROBS
from rusteeze.server.sampling_fields import SamplingFields, Text
from rusteeze.server.tool_schema import (
    MAX_TOOLS,
    CallId,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)


class TextPart(msgspec.Struct):
    """The only kind of content there is: nothing named in a request is ever fetched."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Meta(max_length=MAX_MESSAGES)]


class SystemMessage(msgspec.Struct, kw_only=True, tag="system", tag_field="role"):
    content: Content
    name: Text | None = None


class DeveloperMessage(msgspec.Struct, kw_only=True, tag="developer", tag_field="role"):
    """What newer clients call the system message."""

    content: Content
    name: Text | None = None


class UserMessage(msgspec.Struct, kw_only=True, tag="user", tag_field="role"):
    content: Content
    name: Text | None = None


class AssistantMessage(msgspec.Struct, kw_only=True, tag="assistant", tag_field="role"):
    content: Content | None = None
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None


class ToolMessage(msgspec.Struct, kw_only=True, tag="tool", tag_field="role"):
    """What a call returned."""

    content: Content
    tool_call_id: CallId


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ChatRequest(SamplingFields, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report for each token; None: report nothing."""
        if self.logprobs or self.top_logprobs:
            return self.top_logprobs or 0
        return None


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]


FinishReason = Literal["stop", "length", "tool_calls"]


class AnswerMessage(msgspec.Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatResponse(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
