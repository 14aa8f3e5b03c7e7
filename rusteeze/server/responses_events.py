"""Answers and events of ``/v1/responses``.

An answer is one message or some calls. Its stream begins with its status; each item is added, filled and
done; the last event says how everything ended and repeats the whole.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rusteeze.runtime.interface import Completion, FinishReason, RequestOutput, Usage
from rusteeze.server.errors import ApiError
from rusteeze.server.events import named_event
from rusteeze.server.formats import TextFormat
from rusteeze.server.identity import Identity
from rusteeze.server.responses_schema import (
    AnswerText,
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    CallItem,
    FailureEvent,
    IncompleteDetails,
    InputTokensDetails,
    Item,
    ItemEvent,
    ItemStatus,
    MessageItem,
    OutputTokensDetails,
    PartEvent,
    ResponseBody,
    ResponseEvent,
    ResponsesRequest,
    ResponsesUsage,
    StatusEvent,
    TextConfig,
    TextDeltaEvent,
    TextDoneEvent,
)
from rusteeze.server.tool_schema import ToolCall
from rusteeze.server.tools import CallFilter


class ResponsesRenderer:
    """Events and answer of one request, which is one sequence."""

    def __init__(self, model: str, asked: ResponsesRequest, with_tools: bool) -> None:
        self._asked = asked
        self._identity = Identity.new("resp", model)
        self._filter = CallFilter() if with_tools else None
        self._number = 0
        self._begun = False
        self._message: MessageItem | None = None
        self._ending: ResponseBody | None = None

    def events(self, index: int, output: RequestOutput) -> Iterable[bytes]:
        if not self._begun:
            self._begun = True
            for name in ("response.created", "response.in_progress"):
                yield self._event(StatusEvent, name, response=self._body("in_progress", []))
        text, calls = self._shown(output)
        if text:
            yield from self._text(text)
        if output.finish_reason is not None:
            yield from self._finish(output, calls)

    def text_event(self, index: int, output: RequestOutput) -> bytes | None:
        return None  # every event has its number

    def last_events(self) -> Iterable[bytes]:
        assert self._ending is not None
        yield self._event(StatusEvent, f"response.{self._ending.status}", response=self._ending)

    def failure(self, error: ApiError) -> bytes:
        found = {"code": error.code, "message": error.message, "param": error.param}
        return self._event(FailureEvent, "error", **found)

    def whole(self, completions: Sequence[Completion]) -> ResponseBody:
        (done,) = completions
        text, calls = self._shown(done)
        status = _status(done)
        items: list[Item] = [*map(_item, calls)] or [_message(text, status)]
        return self._body(status, items, done.usage)

    def _shown(self, output: RequestOutput | Completion) -> tuple[str, list[ToolCall]]:
        """The text to show of an output, and at the end the calls that it was instead."""
        if self._filter is None:
            return output.text, []
        text = self._filter.push(output.text)
        if output.finish_reason is None:
            return text, []
        rest, calls = self._filter.finish()
        return text + rest, calls

    def _text(self, text: str) -> Iterator[bytes]:
        yield from self._begin_message()
        assert self._message is not None
        self._message.content[0].text += text
        yield self._part_event(TextDeltaEvent, "response.output_text.delta", delta=text)

    def _begin_message(self) -> Iterator[bytes]:
        if self._message is not None:
            return
        message = _message("", "in_progress")
        self._message = message
        empty = MessageItem(message.id, [], "in_progress")
        yield self._event(ItemEvent, "response.output_item.added", output_index=0, item=empty)
        yield self._part_event(PartEvent, "response.content_part.added", part=AnswerText(""))

    def _finish(self, output: RequestOutput, calls: Sequence[ToolCall]) -> Iterator[bytes]:
        status = _status(output)
        items: list[Item] = [*map(_item, calls)]
        for index, item in enumerate(items):
            assert isinstance(item, CallItem)
            yield from self._call(index, item)
        if not calls:
            yield from self._end_message(status)
            assert self._message is not None
            items = [self._message]
        self._ending = self._body(status, items, output.usage)

    def _end_message(self, status: ItemStatus) -> Iterator[bytes]:
        yield from self._begin_message()
        message = self._message
        assert message is not None
        (part,) = message.content
        yield self._part_event(TextDoneEvent, "response.output_text.done", text=part.text)
        yield self._part_event(PartEvent, "response.content_part.done", part=part)
        message.status = status
        yield self._event(ItemEvent, "response.output_item.done", output_index=0, item=message)

    def _call(self, index: int, item: CallItem) -> Iterator[bytes]:
        at: dict[str, Any] = {"output_index": index}
        begun = CallItem(item.id, item.call_id, item.name, "", "in_progress")
        arguments = "response.function_call_arguments"
        yield self._event(ItemEvent, "response.output_item.added", item=begun, **at)
        at["item_id"] = item.id
        yield self._event(ArgumentsDeltaEvent, f"{arguments}.delta", delta=item.arguments, **at)
        yield self._event(
            ArgumentsDoneEvent, f"{arguments}.done", arguments=item.arguments, name=item.name, **at
        )
        yield self._event(ItemEvent, "response.output_item.done", output_index=index, item=item)

    def _part_event(self, kind: type[ResponseEvent], name: str, **fields: Any) -> bytes:
        assert self._message is not None
        at = {"output_index": 0, "item_id": self._message.id, "content_index": 0}
        return self._event(kind, name, **at, **fields)

    def _event(self, kind: type[ResponseEvent], called: str, /, **fields: Any) -> bytes:
        self._number += 1
        return named_event(called, kind(type=called, sequence_number=self._number - 1, **fields))

    def _body(
        self, status: ItemStatus, items: list[Item], usage: Usage | None = None
    ) -> ResponseBody:
        asked = self._asked
        return ResponseBody(
            id=self._identity.id, created_at=self._identity.created, model=self._identity.model,
            status=status, output=items, usage=_usage(usage),
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
            instructions=asked.instructions, max_output_tokens=asked.max_output_tokens,
            temperature=asked.temperature, top_p=asked.top_p,
            text=TextConfig(format=asked.text.format if asked.text and asked.text.format else TextFormat()),
            tools=asked.tools or [], tool_choice=asked.tool_choice or "auto",
            parallel_tool_calls=asked.parallel_tool_calls is not False, metadata=asked.metadata or {},
        )  # fmt: skip


def _status(output: RequestOutput | Completion) -> ItemStatus:
    return "incomplete" if output.finish_reason is FinishReason.LENGTH else "completed"


def _message(text: str, status: ItemStatus) -> MessageItem:
    return MessageItem(f"msg_{uuid.uuid4().hex}", [AnswerText(text)], status)


def _item(call: ToolCall) -> CallItem:
    function = call.function
    return CallItem(f"fc_{uuid.uuid4().hex}", call.id, function.name, function.arguments, "completed")


def _usage(usage: Usage | None) -> ResponsesUsage | None:
    if usage is None:
        return None
    taken, made = usage.prompt_tokens, usage.completion_tokens
    details = InputTokensDetails(usage.cached_tokens)
    return ResponsesUsage(taken, details, made, OutputTokensDetails(), taken + made)
