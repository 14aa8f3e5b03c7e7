"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rusteeze.runtime.interface import Completion, RequestOutput
from rusteeze.runtime.template import TemplateError
from rusteeze.server.answering import Answer
from rusteeze.server.body import ignored_header, read_body
from rusteeze.server.chat_schema import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    ChunkChoice,
    Content,
    Delta,
    DeveloperMessage,
    Message,
)
from rusteeze.server.errors import bad_request
from rusteeze.server.identity import Identity
from rusteeze.server.prompts import check_model, choices, off_loop, prepare_grammar, token_budget
from rusteeze.server.sampling_fields import sampling_params
from rusteeze.server.service import ServedModel, Service
from rusteeze.server.token_text import chat_entries, shown_logprobs
from rusteeze.server.usage import UsageCount


async def chat_completions(request: Request) -> Answer | Response:
    service: Service = request.app.state.service
    service.check_open()
    body = await read_body(request, ChatRequest, service.limits, service.strict)
    asked = body.value
    check_model(service, asked.model)
    ids = await off_loop(len(str(asked.messages)), chat_ids, service.model, asked.messages)
    wanted = asked.max_completion_tokens or asked.max_tokens
    max_tokens = token_budget(service, [ids], asked.num_choices, wanted)
    params = sampling_params(asked, service.model.defaults, max_tokens, asked.num_logprobs)
    await prepare_grammar(service, params.grammar)
    renderer = ChatRenderer(service.model, asked)
    return Answer(
        service, choices([ids], params), renderer, bool(asked.stream),
        ignored_header(body.unknown),
    )  # fmt: skip


def chat_ids(model: ServedModel, messages: Sequence[Message]) -> list[int]:
    """Tokens of the messages up to where the answer begins. ApiError 400 when they cannot be rendered."""
    if model.template is None:
        raise bad_request("this model has no chat template; use /v1/completions", "messages")
    try:
        text = model.template.render([template_message(message) for message in messages])
    except TemplateError as error:
        raise bad_request(str(error), "messages") from error
    return model.tokenizer.encode(text, add_special_tokens=False)


def template_message(message: Message) -> dict[str, Any]:
    """A message as templates expect it: plain text, and a role that they know."""
    role = "system" if isinstance(message, DeveloperMessage) else message.__struct_config__.tag
    return {"role": role, "content": plain_text(message.content)}


def plain_text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


class ChatRenderer:
    """Chunks and answers of one chat request."""

    def __init__(self, model: ServedModel, asked: ChatRequest) -> None:
        self._tokenizer = model.tokenizer
        self._identity = Identity.new("chatcmpl", model.name)
        self._with_logprobs = asked.num_logprobs is not None
        self._with_usage = asked.wants_usage_chunk
        self._usage = UsageCount(asked.num_choices)
        self._begun: set[int] = set()

    def chunks(self, index: int, output: RequestOutput) -> Iterator[ChatChunk]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk(ChunkChoice(index, Delta(role="assistant", content="")))
        logprobs = self._logprobs(output)
        if output.text or (logprobs is not None and logprobs.content):
            yield self._chunk(ChunkChoice(index, Delta(content=output.text), logprobs))
        if output.finish_reason is not None:
            assert output.usage is not None
            self._usage.add(index, output.usage)
            yield self._chunk(ChunkChoice(index, Delta(), finish_reason=output.finish_reason.value))  # type: ignore[arg-type]

    def last_chunks(self) -> Iterator[ChatChunk]:
        if self._with_usage:
            chunk = self._chunk()
            chunk.usage = self._usage.body()
            yield chunk

    def whole(self, completions: Sequence[Completion]) -> ChatResponse:
        found = []
        for index, completion in enumerate(completions):
            assert completion.usage is not None
            self._usage.add(index, completion.usage)
            message = AnswerMessage("assistant", completion.text)
            reason: Any = completion.finish_reason.value
            found.append(ChatChoice(index, message, reason, self._logprobs(completion)))
        return ChatResponse(*self._identity, found, self._usage.body())

    def _chunk(self, *found: ChunkChoice) -> ChatChunk:
        chunk = ChatChunk(*self._identity, list(found))
        if self._with_usage:
            chunk.usage = None  # as OpenAI does: null in all chunks but the last
        return chunk

    def _logprobs(self, output: RequestOutput | Completion) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return ChatLogprobs(chat_entries(self._tokenizer, shown_logprobs(output)))
