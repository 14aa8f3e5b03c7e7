"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rusteeze.runtime.interface import Asked, Completion, RequestOutput
from rusteeze.runtime.interface import FinishReason as EngineReason
from rusteeze.runtime.template import TemplateError
from rusteeze.server.answering import Answer
from rusteeze.server.body import ignored_header, read_body
from rusteeze.server.chat_schema import (
    AnswerMessage,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    ChunkChoice,
    Content,
    Delta,
    DeveloperMessage,
    FinishReason,
    Message,
    ToolMessage,
)
from rusteeze.server.errors import ApiError, bad_request
from rusteeze.server.events import DONE, TextEvents, error_event, event
from rusteeze.server.formats import grammar_of
from rusteeze.server.identity import Identity
from rusteeze.server.prompts import check_model, choices, off_loop, prepare_grammar, token_budget
from rusteeze.server.sampling_fields import sampling_params
from rusteeze.server.service import ServedModel, Service
from rusteeze.server.token_text import chat_entries, shown_logprobs
from rusteeze.server.tool_schema import ToolCall, ToolCallDelta
from rusteeze.server.tools import CallFilter, ToolUse, template_calls
from rusteeze.server.usage import UsageCount


async def chat_completions(request: Request) -> Answer | Response:
    service: Service = request.app.state.service
    service.check_open()
    body = await read_body(request, ChatRequest, service.limits, service.strict)
    asked = body.value
    sequences, use = await chat_sequences(service, asked)
    renderer = ChatRenderer(service.model, asked, with_tools=use is not None)
    return Answer(
        service, sequences, renderer, bool(asked.stream), ignored_header(body.unknown)
    )  # fmt: skip


async def chat_sequences(
    service: Service, asked: ChatRequest
) -> tuple[list[Asked], ToolUse | None]:  # fmt: skip
    """What the engine is to do for a conversation. ApiError when it cannot be done."""
    check_model(service, asked.model)
    use = ToolUse.of(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
    characters = len(str(asked.messages)) + len(str(asked.tools))
    ids = await off_loop(characters, chat_ids, service.model, asked.messages, use)
    wanted = asked.max_completion_tokens or asked.max_tokens
    max_tokens = token_budget(service, [ids], asked.num_choices, wanted)
    if use and grammar_of(asked.response_format):
        raise bad_request("response_format cannot be combined with tools", "response_format")
    grammar = use.grammar() if use else None
    params = sampling_params(
        asked, service.model.defaults, max_tokens, asked.num_logprobs, grammar=grammar
    )
    await prepare_grammar(service, params.grammar, "tools" if use else "response_format")
    return choices([ids], params), use


def chat_ids(
    model: ServedModel, messages: Sequence[Message], use: ToolUse | None = None
) -> list[int]:
    """Tokens of the messages up to where the answer begins. ApiError 400 when they cannot be rendered."""
    if model.template is None:
        raise bad_request("this model has no chat template; use /v1/completions", "messages")
    try:
        plain = [template_message(message) for message in messages]
        text = use.render(model.template, plain) if use else model.template.render(plain)
    except TemplateError as error:
        raise bad_request(str(error), "messages") from error
    return model.encode_bare(text)


def template_message(message: Message) -> dict[str, Any]:
    """A message as templates expect it: plain text, and a role that they know."""
    role = "system" if isinstance(message, DeveloperMessage) else message.__struct_config__.tag
    plain: dict[str, Any] = {"role": role, "content": plain_text(message.content)}
    if isinstance(message, AssistantMessage) and message.tool_calls:
        plain["tool_calls"] = template_calls(message.tool_calls)
    if isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
    return plain


def plain_text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


class ChatRenderer:
    """Chunks and answers of one chat request."""

    def __init__(self, model: ServedModel, asked: ChatRequest, with_tools: bool) -> None:
        self._tokenizer = model.tokenizer
        self._identity = Identity.new("chatcmpl", model.name)
        self._with_logprobs = asked.num_logprobs is not None
        self._with_usage = asked.wants_usage_chunk
        self._usage = UsageCount(asked.num_choices)
        self._begun: set[int] = set()
        choices = range(asked.num_choices if with_tools else 0)
        self._filters = {index: CallFilter() for index in choices}
        self._texts = TextEvents(self._text_event)

    def events(self, index: int, output: RequestOutput) -> Iterable[bytes]:
        return map(event, self._chunks(index, output))

    def text_event(self, index: int, output: RequestOutput) -> bytes | None:
        plain = output.finish_reason is None and not self._filters and not self._with_logprobs
        if not plain or index not in self._begun:
            return None
        return self._texts.of(index, output.text) if output.text else b""

    def _text_event(self, index: int, text: str) -> bytes:
        return event(self._chunk(ChunkChoice(index, Delta(content=text))))

    def _chunks(self, index: int, output: RequestOutput) -> Iterator[ChatChunk]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk(ChunkChoice(index, Delta(role="assistant", content="")))
        text, calls = self._shown(index, output)
        logprobs = self._logprobs(output)
        if text or (logprobs is not None and logprobs.content):
            yield self._chunk(ChunkChoice(index, Delta(content=text), logprobs))
        if calls:
            deltas = [ToolCallDelta(i, call.id, call.function) for i, call in enumerate(calls)]
            yield self._chunk(ChunkChoice(index, Delta(tool_calls=deltas)))
        if output.finish_reason is not None:
            assert output.usage is not None
            self._usage.add(index, output.usage)
            yield self._chunk(ChunkChoice(index, Delta(), finish_reason=_reason(output, calls)))

    def last_events(self) -> Iterator[bytes]:
        if self._with_usage:
            chunk = self._chunk()
            chunk.usage = self._usage.body()
            yield event(chunk)
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, completions: Sequence[Completion]) -> ChatResponse:
        found = []
        for index, completion in enumerate(completions):
            assert completion.usage is not None
            self._usage.add(index, completion.usage)
            text, calls = self._shown(index, completion)
            message = AnswerMessage("assistant", text or ("" if not calls else None))
            if calls:
                message.tool_calls = calls
            logprobs = self._logprobs(completion)
            found.append(ChatChoice(index, message, _reason(completion, calls), logprobs))
        return ChatResponse(*self._identity, found, self._usage.body())

    def _shown(self, index: int, output: RequestOutput | Completion) -> tuple[str, list[ToolCall]]:
        """The text to show of an output, and at the end the calls that it was instead."""
        if index not in self._filters:
            return output.text, []
        text = self._filters[index].push(output.text)
        if output.finish_reason is None:
            return text, []
        rest, calls = self._filters[index].finish()
        return text + rest, calls

    def _chunk(self, *found: ChunkChoice) -> ChatChunk:
        chunk = ChatChunk(*self._identity, list(found))
        if self._with_usage:
            chunk.usage = None  # as OpenAI does: null in all chunks but the last
        return chunk

    def _logprobs(self, output: RequestOutput | Completion) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChatLogprobs(chat_entries(self._tokenizer, shown_logprobs(output)))


def _reason(output: RequestOutput | Completion, calls: Sequence[ToolCall]) -> FinishReason:
    ended_itself = output.finish_reason is EngineReason.STOP
    if calls and ended_itself:
        return "tool_calls"
    return "stop" if ended_itself else "length"
