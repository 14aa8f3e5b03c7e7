"""One HTTP connection with limits that come before any request exists: headers and patience.

uvicorn's protocol parses; this adds what it leaves open. Bodies are limited where they are read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rusteeze.server.limits import Limits

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


def limited_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol class for these limits; uvicorn makes one object of it for every connection."""

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_bytes = 0
            self._in_head = True
            self._deadline: asyncio.TimerHandle | None = None
            self._stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_timers()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            # A body may have come with the end of the head, so only an unfinished head is too large.
            if self._in_head and self._head_bytes > limits.max_header_bytes:
                self.transport.write(_TOO_LARGE)
                self.transport.close()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            self._await_head()

        def on_headers_complete(self) -> None:
            self._in_head, self._head_bytes = False, 0
            if self._deadline is not None:
                self._deadline.cancel()
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
            super().resume_writing()

        def _await_head(self) -> None:
            """Give the client a while to say what it wants."""
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _cancel_timers(self) -> None:
            for timer in (self._deadline, self._stalled):
                if timer is not None:
                    timer.cancel()

    return LimitedProtocol
