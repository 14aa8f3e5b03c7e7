"""Server-sent events: how the parts of a stream are written, and a short way for those that differ in a text only."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from rusteeze.server.errors import ApiError

DONE = b"data: [DONE]\n\n"
_MARK = "\0text\0"  # no model says this, and JSON escapes it

_encode = msgspec.json.Encoder().encode


def event(value: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encode(value)


def named_event(name: str, value: msgspec.Struct) -> bytes:
    return b"event: %b\n" % name.encode() + event(value)


def error_event(error: ApiError) -> bytes:
    """What a stream ends with that fails on its way."""
    return event(error.body())


class TextEvent:
    """An event that is written again and again with another text: all else of it is encoded once.

    ``made`` gives the whole event for a text; it must contain that text once."""

    def __init__(self, made: Callable[[str], bytes]) -> None:
        self._before, self._after = made(_MARK).split(_encode(_MARK))

    def of(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after
