"""What all endpoints share: the served model, the engine, limits, metrics, and whether we are leaving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rusteeze.runtime.template import ChatTemplate
from rusteeze.runtime.tokens import Tokenizer
from rusteeze.server.errors import bad_request, overloaded, unavailable
from rusteeze.server.limits import MAX_CHOICES, Limits
from rusteeze.server.metrics import Metrics
from rusteeze.server.replies import AsyncEngine


@dataclass(frozen=True)
class ServedModel:
    """What requests need to know of the model. ``defaults`` is its generation_config.json."""

    name: str
    created: int
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: Mapping[str, Any]
    max_model_len: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain prompt, after whatever the model expects at the start of a text."""
        return [*(self.defaults.get("prompt_prefix_ids") or []), *self.encode_bare(text)]

    def encode_bare(self, text: str) -> list[int]:
        """Tokens of a text alone. ApiError 400 when it cannot but have more than the model takes."""
        longest = self.max_model_len
        if len(text) > longest and (fewest := self.tokenizer.fewest_tokens(text)) > longest:
            raise bad_request(
                f"the text has at least {fewest} tokens; prompt and output together may have {longest}",
                code="context_length_exceeded",
            )
        return self.tokenizer.encode(text, add_special_tokens=False)


@dataclass
class Service:
    """The state behind the routes. ``strict`` refuses fields that no endpoint knows."""

    model: ServedModel
    engine: AsyncEngine
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    strict: bool = False
    draining: bool = False

    @property
    def sickness(self) -> str | None:
        """Why the process should be restarted; None when it is well."""
        if not self.engine.is_alive:
            return "the engine has stopped"
        if self.engine.seconds_since_beat > self.limits.stall_seconds:
            return "the engine does not move"
        return None

    @property
    def obstacle(self) -> str | None:
        """Why no request should be sent here now; None when ready."""
        if self.draining:
            return "shutting down"
        return self.sickness or ("the queue is full" if self.engine.is_full else None)

    @property
    def max_request_tokens(self) -> int:
        return self.limits.max_request_tokens or MAX_CHOICES * self.model.max_model_len

    def check_open(self) -> None:
        """ApiError 503 while leaving or sick, 429 when the queue is full: before any work is done."""
        if self.draining:
            raise unavailable("the server is shutting down", self.limits.retry_after_seconds)
        if not self.engine.is_alive:
            raise unavailable("the engine has stopped", self.limits.retry_after_seconds)
        if self.engine.is_full:
            self.metrics.rejected(1)
            raise overloaded(self.limits.retry_after_seconds)
