"""How tokens and their log-probabilities appear in answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rusteeze.runtime.interface import Completion, Logprobs, RequestOutput
from rusteeze.runtime.tokens import Tokenizer
from rusteeze.server.chat_schema import TokenLogprob, TopLogprob

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def shown_logprobs(output: RequestOutput | Completion) -> Iterator[tuple[int, Logprobs]]:
    """Tokens of an output with their log-probabilities, without the end token, which has no text."""
    pairs = list(zip(output.token_ids, output.logprobs, strict=False))
    yield from pairs[:-1] if isinstance(output.stop, int) else pairs


def chat_entries(
    tokenizer: Tokenizer, pairs: Iterable[tuple[int, Logprobs]]
) -> list[TokenLogprob]:
    """Entries of a chat answer's ``logprobs.content``."""
    return [
        TokenLogprob(
            *_entry(tokenizer, token, logprobs.chosen),
            [TopLogprob(*_entry(tokenizer, *pair)) for pair in logprobs.top],
        )
        for token, logprobs in pairs
    ]


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def legacy_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as the completions endpoint writes it: ``bytes:\\xe2\\x80`` when it is half a character."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
    data = tokenizer.token_bytes(token_id)
    return data.decode(errors="replace"), finite(logprob), list(data)
