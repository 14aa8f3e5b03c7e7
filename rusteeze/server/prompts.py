"""From prompts to sequences: the checks and counts that both generating endpoints share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rusteeze.runtime.interface import Asked, QueueFull, RequestError, SamplingParams
from rusteeze.runtime.params import Grammar
from rusteeze.server.errors import ApiError, bad_request, unavailable
from rusteeze.server.service import Service

T = TypeVar("T")

INLINE_CHARACTERS = 4096
"""Tokenizing less than this takes about a millisecond; more is not done in the event loop."""


def check_model(service: Service, name: str) -> None:
    """ApiError 404 when another model is asked for."""
    if name != service.model.name:
        message = f"there is no such model; this server has {service.model.name}"
        raise ApiError(404, message, "model_not_found", "model")


async def off_loop(num_characters: int, work: Callable[..., T], *arguments: Any) -> T:
    """The result of some work on a text; in a thread of its own when the text is long."""
    if num_characters < INLINE_CHARACTERS:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def token_budget(
    service: Service, prompts: Sequence[Sequence[int]], num_choices: int, wanted: int | None,
    with_prompts: bool = False,
) -> int:  # fmt: skip
    """Most tokens of one choice: what is wanted, or else what model and server allow.

    ``with_prompts``: log-probabilities of the prompts are wanted too, and count. ApiError 400 when a prompt leaves no room, or when all choices together want too much.
    """
    longest = max(map(len, prompts))
    room = service.model.max_model_len - longest
    if room < 1:
        message = (
            f"the prompt has {longest} tokens; prompt and output together may have "
            f"{service.model.max_model_len}"
        )
        raise bad_request(message, code="context_length_exceeded")
    reported = sum(map(len, prompts)) if with_prompts else 0
    share = (service.max_request_tokens - reported) // (len(prompts) * num_choices)
    if share < 0:
        raise bad_request(
            f"log-probabilities of {reported} tokens of prompts are more than "
            f"{service.max_request_tokens} tokens, the most that one request may ask for",
            "echo",
        )
    if wanted is None:
        return max(1, min(room, share))
    if min(wanted, room) > share:
        raise bad_request(
            f"{len(prompts) * num_choices} choices of {min(wanted, room)} tokens are more than "
            f"{service.max_request_tokens} tokens, the most that one request may ask for",
            "max_tokens",
        )
    return min(wanted, room)


def choices(prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Asked]:
    """One sequence for each choice of each prompt; choices draw from seeds of their own. Log-probabilities of
    a prompt are asked for with its first choice only."""
    first, *others = params.choices()
    if params.prompt_logprobs is not None:
        others = [replace(own, prompt_logprobs=None) for own in others]
    return [(prompt, own) for prompt in prompts for own in (first, *others)]


async def prepare_grammar(service: Service, grammar: Grammar | None, param: str) -> None:
    """Compile a grammar outside the event loop, under its deadline. ApiError 400 when it is wrong, 503 when
    others take too long; ``param`` is where it came from."""
    if grammar is None:
        return
    start = time.perf_counter()
    try:
        await asyncio.to_thread(service.engine.compile_grammar, grammar)
    except QueueFull as error:
        raise unavailable(str(error), service.limits.retry_after_seconds) from None
    except RequestError as error:
        raise bad_request(str(error), param, "invalid_grammar") from None
    finally:
        service.metrics.grammar(time.perf_counter() - start)
