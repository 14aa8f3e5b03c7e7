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


class TextEvents:
    """Events that are written again and again with another text: all else of them is encoded once.

    ``made`` gives the whole event of a choice for a text; it must contain that text once."""

    def __init__(self, made: Callable[[int, str], bytes]) -> None:
        self._made = made
        self._around: dict[int, list[bytes]] = {}

    def of(self, index: int, text: str) -> bytes:
        around = self._around.get(index)
        if around is None:
            around = self._around[index] = self._made(index, _MARK).split(_encode(_MARK))
        before, after = around
        return before + _encode(text) + after
