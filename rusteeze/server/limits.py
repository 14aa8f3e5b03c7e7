"""What the server refuses before it costs anything: sizes, counts and times, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHOICES = 16
"""Largest n of a request."""
MAX_PROMPTS = 64
"""Most prompts of one completions request."""
MAX_MESSAGES = 1024
MAX_BIASES = 1024
"""Most entries of logit_bias: what the OpenAI API has use for."""
MAX_TOP_LOGPROBS = 20
"""Most alternatives reported for a token."""
MAX_TOKENS = 2**31 - 1
"""Largest max_tokens that is a number at all; the model's length bounds it anyway."""


@dataclass(frozen=True)
class Limits:
    """Bytes, counts and seconds.

    A request may ask for
    ``max_request_tokens`` tokens in all its choices together, those of echoed prompts with log-probabilities
    included; None: 16 times the model's length.
    ``write_seconds`` bounds how long a client may leave its data unread, ``stall_seconds`` how long a
    step may take before the server calls itself sick.
    """

    max_body_bytes: int = 4 * 2**20
    max_header_bytes: int = 32 * 2**10
    max_request_tokens: int | None = None
    header_seconds: float = 15.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    stall_seconds: float = 60.0
    drain_seconds: float = 30.0
    retry_after_seconds: int = 1
