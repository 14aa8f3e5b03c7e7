"""``POST /v1/completions``: plain prompts, with ``echo`` and log-probabilities of prompt and output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from rusteeze.runtime.interface import Completion, Logprobs, RequestOutput, Usage
from rusteeze.runtime.tokens import Tokenizer
from rusteeze.server.answering import Answer
from rusteeze.server.body import ignored_header, read_body
from rusteeze.server.completion_schema import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from rusteeze.server.errors import ApiError, bad_request
from rusteeze.server.events import DONE, TextEvents, error_event, event
from rusteeze.server.identity import Identity
from rusteeze.server.limits import MAX_PROMPTS
from rusteeze.server.prompts import check_model, choices, off_loop, prepare_grammar, token_budget
from rusteeze.server.sampling_fields import sampling_params
from rusteeze.server.service import ServedModel, Service
from rusteeze.server.token_text import finite, legacy_text, shown_logprobs
from rusteeze.server.usage import UsageCount


@dataclass(frozen=True)
class TextPrompt:
    """One prompt: its tokens and the text that ``echo`` repeats."""

    ids: list[int]
    text: str


async def completions(request: Request) -> Answer | Response:
    service: Service = request.app.state.service
    service.check_open()
    body = await read_body(request, CompletionRequest, service.limits, service.strict)
    asked = body.value
    check_model(service, asked.model)
    characters = len(str(asked.prompt))
    prompts = await off_loop(
        characters, text_prompts, service.model, asked.prompt, bool(asked.echo)
    )
    ids = [prompt.ids for prompt in prompts]
    # Nothing but the prompt is wanted with 0, but the engine always draws a token.
    max_tokens = token_budget(
        service, ids, asked.num_choices, max(1, asked.wanted_tokens),
        with_prompts=asked.prompt_logprobs is not None,
    )  # fmt: skip
    params = sampling_params(
        asked, service.model.defaults, max_tokens, asked.logprobs, asked.prompt_logprobs
    )
    await prepare_grammar(service, params.grammar, "response_format")
    return Answer(
        service, choices(ids, params),
        CompletionRenderer(service.model, asked, prompts), bool(asked.stream),
        ignored_header(body.unknown),
    )  # fmt: skip


def text_prompts(model: ServedModel, prompt: Any, with_text: bool) -> list[TextPrompt]:
    """The prompts of a request in order. ApiError 400 when there are too many, or they are mixed.
    Token ids are only put into words ``with_text``."""
    if isinstance(prompt, str):
        return [_of_text(model, prompt)]
    kinds = {type(part) for part in prompt}
    if len(kinds) > 1:
        raise bad_request("a list of prompts holds texts, token ids, or lists of token ids", "prompt")
    if kinds == {int}:
        return [_of_ids(model, list(prompt), with_text)]
    if len(prompt) > MAX_PROMPTS:
        raise bad_request(f"at most {MAX_PROMPTS} prompts in one request", "prompt")
    if kinds == {str}:
        return [_of_text(model, text) for text in prompt]
    return [_of_ids(model, ids, with_text) for ids in prompt]


def _of_text(model: ServedModel, text: str) -> TextPrompt:
    return TextPrompt(model.encode(text), text)


def _of_ids(model: ServedModel, ids: list[int], with_text: bool) -> TextPrompt:
    if max(ids) >= model.vocab_size:
        raise bad_request(f"token ids must be below {model.vocab_size}", "prompt")
    text = model.tokenizer.decode(ids, skip_special_tokens=False) if with_text else ""
    return TextPrompt(ids, text)


class CompletionRenderer:
    """Chunks and answers of one completions request."""

    def __init__(
        self, model: ServedModel, asked: CompletionRequest, prompts: Sequence[TextPrompt]
    ) -> None:
        self._identity = Identity.new("cmpl", model.name)
        self._usage = UsageCount(asked.num_choices)
        self._with_usage = asked.wants_usage_chunk
        self._num_choices = asked.num_choices
        self._echoes = [Echo(prompt) if asked.echo else None for prompt in prompts]
        self._parts = [
            CompletionParts(model.tokenizer, asked, echo)
            for echo in self._echoes
            for _ in range(asked.num_choices)
        ]
        self._is_plain = not asked.echo and asked.logprobs is None and asked.max_tokens != 0
        self._texts = TextEvents(self._text_event)

    def events(self, index: int, output: RequestOutput) -> Iterable[bytes]:
        return map(event, self.chunks(index, output))

    def text_event(self, index: int, output: RequestOutput) -> bytes | None:
        if not self._is_plain or output.finish_reason is not None:
            return None
        return self._texts.of(index, output.text) if output.text else b""

    def _text_event(self, index: int, text: str) -> bytes:
        return event(self._response([CompletionChoice(index, text)], None if self._with_usage else UNSET))

    def chunks(self, index: int, output: RequestOutput) -> Iterator[CompletionResponse]:
        """The same as values."""
        echo = self._echoes[index // self._num_choices]
        if echo is None:
            yield from self._chunks(index, output)
            return
        if index % self._num_choices == 0:
            echo.push(output)
        echo.held.append((index, output))
        if echo.is_complete:
            held, echo.held = echo.held, []
            for each in held:
                yield from self._chunks(*each)

    def _chunks(self, index: int, output: RequestOutput) -> Iterator[CompletionResponse]:
        parts = self._parts[index]
        parts.push(output)
        if parts.has_news or output.finish_reason is not None:
            yield self._response([self._choice(index, output)], None if self._with_usage else UNSET)

    def last_events(self) -> Iterator[bytes]:
        if self._with_usage:
            yield event(self._response([], self._usage.body()))
        yield DONE

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, completions: Sequence[Completion]) -> CompletionResponse:
        found = []
        for index, completion in enumerate(completions):
            echo = self._echoes[index // self._num_choices]
            if echo is not None and index % self._num_choices == 0:
                echo.push(completion)
            self._parts[index].push(completion)
            found.append(self._choice(index, completion))
        return self._response(found, self._usage.body())

    def _choice(self, index: int, output: RequestOutput | Completion) -> CompletionChoice:
        parts = self._parts[index]
        if output.usage is not None:
            self._usage.add(index, parts.counted(output.usage))
        text, logprobs = parts.take()
        reason: Any = output.finish_reason.value if output.finish_reason else None
        return CompletionChoice(index, text, logprobs, reason)

    def _response(self, found: list[CompletionChoice], usage: Any) -> CompletionResponse:
        return CompletionResponse(*self._identity, found, usage)


class Echo:
    """A prompt that its choices repeat. The first choice brings its log-probabilities, and is complete when
    it has a token of its own; what others have before that is ``held``."""

    def __init__(self, prompt: TextPrompt) -> None:
        self.prompt = prompt
        self.logprobs: list[Logprobs] = []
        self.is_complete = False
        self.held: list[tuple[int, RequestOutput]] = []

    def push(self, output: RequestOutput | Completion) -> None:
        """An output of the first choice."""
        self.logprobs += output.prompt_logprobs
        self.is_complete |= bool(output.token_ids) or output.finish_reason is not None


class CompletionParts:
    """Text and log-probabilities of one choice, as they come. A complete echo comes before the output."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionRequest, echo: Echo | None) -> None:
        self._tokenizer = tokenizer
        self._echo = echo
        self._with_logprobs = asked.logprobs is not None
        self._without_output = asked.max_tokens == 0
        self._text = ""
        self._entries: list[tuple[int, Logprobs | None]] = []
        self._offset = 0

    @property
    def has_news(self) -> bool:
        return bool(self._text or self._entries)

    def push(self, output: RequestOutput | Completion) -> None:
        if self._echo is not None and (output.token_ids or output.finish_reason is not None):
            self._repeat(self._echo)
            self._echo = None
        if not self._without_output:
            self._text += output.text
            self._entries += shown_logprobs(output)

    def _repeat(self, echo: Echo) -> None:
        self._text += echo.prompt.text
        if self._with_logprobs:
            self._entries += zip(echo.prompt.ids, [None, *echo.logprobs], strict=True)

    def take(self) -> tuple[str, CompletionLogprobs | None]:
        """What has come since the last time."""
        text, entries = self._text, self._entries
        self._text, self._entries = "", []
        return text, self._logprobs(entries) if self._with_logprobs else None

    def counted(self, usage: Usage) -> Usage:
        return replace(usage, completion_tokens=0) if self._without_output else usage

    def _logprobs(self, entries: Sequence[tuple[int, Logprobs | None]]) -> CompletionLogprobs:
        found = CompletionLogprobs([], [], [], [])
        for token, logprobs in entries:
            text = legacy_text(self._tokenizer, token)
            found.tokens.append(text)
            found.token_logprobs.append(finite(logprobs.chosen) if logprobs else None)
            found.top_logprobs.append(self._top(logprobs) if logprobs else None)
            found.text_offset.append(self._offset)
            self._offset += len(text)
        return found

    def _top(self, logprobs: Logprobs) -> dict[str, float]:
        return {legacy_text(self._tokenizer, id): finite(value) for id, value in logprobs.top}
