"""The two seams of the runtime: what it needs of a model, and what it offers to those above.

``Executor`` is implemented once per device. ``Engine`` is what the server and the recursive engine
are written against, so that a scripted model can stand in for a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np

from rusteeze.runtime.batch import Batch
from rusteeze.runtime.config import Capacity
from rusteeze.runtime.params import SamplingParams
from rusteeze.runtime.sampler import Logprobs
from rusteeze.runtime.sequence import FinishReason

__all__ = [
    "Asked", "Completion", "Engine", "Executor", "Fault", "FinishReason", "Logprobs", "OutputStream", "Prompt",
    "QueueFull", "RequestError", "RequestOutput", "SamplingParams", "Takes", "Timing", "Usage",
]  # fmt: skip

Prompt = str | Sequence[int]
Asked = tuple[Prompt, SamplingParams]
"""What one request is: a prompt, and how it is answered."""


class Executor(Capacity, Protocol):
    """A compiled model with its KV cache on one device."""

    @property
    def vocab_size(self) -> int: ...

    def execute(self, batch: Batch) -> np.ndarray:
        """Logits f32[R, V] of the batch's rows, valid until the next call; R may be 0 or up to T.

        The KV of every token is stored in its slot before any token attends to it.
        """
        ...


@runtime_checkable
class KnowsBest(Protocol):
    """An executor that finds the likeliest tokens itself, on all threads."""

    def best_tokens(self) -> np.ndarray:
        """int64 [R]: ``argmax(axis=1)`` of the logits of the last call."""
        ...


@runtime_checkable
class KeepsLogits(Protocol):
    """An executor whose logits are far away: it can compute a step and give its likeliest tokens alone."""

    def execute_for_best(self, batch: Batch) -> np.ndarray:
        """int64 [R]: ``execute(batch).argmax(axis=1)``, -1 where a row holds NaN or infinity."""
        ...


class ExecutorLost(Exception):
    """The executor can compute nothing any more: whatever it is asked, it will fail."""


class RequestError(ValueError):
    """A request that cannot be served; the message says why and is fit for the client."""

    user_error = True


class QueueFull(RequestError):
    """Too many requests wait already; the same one may be served later."""


class Fault(StrEnum):
    """What went wrong with a request that ended with FinishReason.ERROR."""

    NOT_FINITE = "not_finite"  # NaN or infinity in its logits
    NO_TOKEN = "no_token"  # its parameters leave no token to choose from
    EXECUTOR = "executor"  # the step that it was part of failed
    TIMEOUT = "timeout"
    INTERNAL = "internal"
    REFUSED = "refused"  # it was never queued


@dataclass(frozen=True)
class Usage:
    """Token counts of one request. ``completion_tokens`` includes an end token; ``cached_tokens`` of
    the prompt were taken from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """Milliseconds since the request arrived; None for what never happened."""

    queue_ms: float | None
    ttft_ms: float | None
    total_ms: float


class RequestOutput(msgspec.Struct, frozen=True):
    """What one step added to one request. The last output of a request has a ``finish_reason``.

    ``text`` is the new text; text that may become part of a stop string, or half a character, comes
    with a later output. ``stop`` is the stop string or end token that ended the request.
    ``logprobs`` has one entry per token if the request asked for them, ``prompt_logprobs`` those of
    further prompt tokens, from the second on. ``usage`` and ``timing`` come with the last output, and
    ``error`` and ``fault`` when its reason is ERROR.
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | int | None = None
    error: str | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    fault: Fault | None = None


Takes = Callable[[RequestOutput], bool]
"""Is shown an output, and says whether it has dealt with it."""


@dataclass(frozen=True)
class Completion:
    """All outputs of one request together. ``error`` and ``fault`` are set when the reason is ERROR."""

    request_id: str
    finish_reason: FinishReason
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    stop: str | int | None = None
    error: str | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    fault: Fault | None = None

    @staticmethod
    def collect(outputs: Sequence[RequestOutput]) -> Completion:
        """Join the outputs of one request, of which the last is final (ValueError if not)."""
        last = outputs[-1]
        if last.finish_reason is None:
            raise ValueError(f"request {last.request_id} has not finished")
        return Completion(
            last.request_id, last.finish_reason,
            "".join(output.text for output in outputs),
            tuple(token for output in outputs for token in output.token_ids),
            tuple(entry for output in outputs for entry in output.logprobs),
            tuple(entry for output in outputs for entry in output.prompt_logprobs),
            last.stop, last.error, last.usage, last.timing, last.fault,
        )  # fmt: skip


class OutputStream(Protocol):
    """The outputs of one request, in order, up to the one with a ``finish_reason``."""

    def __iter__(self) -> Iterator[RequestOutput]: ...
    def __next__(self) -> RequestOutput: ...

    def close(self) -> None:
        """Cancel the request if it has not finished; further calls do nothing."""
        ...


class Engine(Protocol):
    """Many requests at once. ``submit`` and ``cancel`` may be called from any thread."""

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, request_id: str | None = None
    ) -> str:
        """Queue a request and return its id. RequestError when it can never be served."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request within one step, whatever its state; an unknown id is no error."""
        ...

    def stream(self, request_id: str) -> OutputStream:
        """The outputs of a submitted request as they come. RequestError when there is none."""
        ...
