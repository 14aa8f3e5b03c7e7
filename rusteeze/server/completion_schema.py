"""The wire format of ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rusteeze.server.chat_schema import FinishReason
from rusteeze.server.common_schema import UsageBody
from rusteeze.server.limits import MAX_TOKENS, MAX_TOP_LOGPROBS
from rusteeze.server.sampling_fields import SamplingFields, TokenId

DEFAULT_MAX_TOKENS = 16
"""As in the OpenAI API."""

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
# A list of one kind only, which rusteeze.server.openapi says and the endpoint checks.
Prompts = Annotated[
    list[Annotated[str, Meta(min_length=1)] | TokenId | TokenIds],
    Meta(min_length=1, extra_json_schema={"format": "prompts"}),
]


class CompletionRequest(SamplingFields, kw_only=True):
    """``prompt`` is a text, a list of texts, the token ids of one prompt, or a list of such lists."""

    prompt: Annotated[str, Meta(min_length=1)] | Prompts
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def prompt_logprobs(self) -> int | None:
        """Alternatives to report for each token of an echoed prompt; None: report nothing."""
        return self.logprobs if self.echo else None

    @property
    def wanted_tokens(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists; the first token of an echoed prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionResponse(msgspec.Struct):
    """A whole answer, or one chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
