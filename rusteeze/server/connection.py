"""One HTTP connection with limits that come before any request exists: headers and patience.

uvicorn's protocol parses; this adds what it leaves open. Bodies are limited where they are read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rusteeze.server.limits import Limits
from rusteeze.server.pieces import Pieces

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
LINGER_SECONDS = 2.0
"""How long the rest of a body that was answered unread may take."""


PIECES = "rusteeze.pieces"
"""The ASGI extension under which a request has its Pieces; where they do not write, ``send`` is the way."""


class HeadTooLarge(Exception):
    """Raised into the parser, which stops there."""


class TooEarly(Exception):
    """Raised into the parser by a request that comes before the last one is answered."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection; all arguments but the first are uvicorn's."""

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head_bytes = 0  # of request line, headers and trailers, as far as they are parsed
        self._unread_bytes = 0  # received since the last body or end of a head
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._pieces: Pieces | None = None  # of the answer that is being given
        self._is_deaf = False  # what comes is not read any more; the connection closes behind the answer

    # The connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        if self._pieces is not None:
            self._pieces.close()  # before the transport closes the socket, which it does next
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > self._limits.max_header_bytes and not self.transport.is_closing():
            self._refuse_head()
        if self._is_idle and self._deadline is None:
            self._await_head()  # bytes that begin no request, for which uvicorn stops its own timer

    @property
    def _is_idle(self) -> bool:
        """Nothing is being answered, and uvicorn does not wait for the next request."""
        return not self._is_answering and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # What the parser finds

    def on_message_begin(self) -> None:
        if self._is_answering:
            # uvicorn would stop reading until the answer has ended, and not see that a client leaves.
            raise TooEarly
        super().on_message_begin()
        self._head_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unread_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()
        if self.cycle is not None:
            self._pieces = Pieces(self.cycle, self.loop)
            extensions: Any = {PIECES: self._pieces}
            self.scope["extensions"] = extensions

    def on_chunk_header(self) -> None:
        self._unread_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > self._limits.max_header_bytes:
            raise HeadTooLarge

    # What is answered here

    def send_400_response(self, msg: str) -> None:
        if self._is_answering and not self.cycle.more_body:
            self.cycle.keep_alive = False  # the answer is given; what follows the request is not read
            self._is_deaf, self._unread_bytes = True, 0
        elif self._head_bytes > self._limits.max_header_bytes:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        if not self._is_answering:
            self.transport.write(_TOO_LARGE)
        self.transport.close()

    def on_response_complete(self) -> None:
        unread = self.cycle.more_body
        super().on_response_complete()
        if unread and not self.transport.is_closing():
            self._linger()

    def _linger(self) -> None:
        """Close unless the rest of the body comes soon: nobody wants it, but it is no next request."""
        self._unset_keepalive_if_required()
        self._stop_waiting()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete:
            self._stop_waiting()

    # Patience

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def _await_head(self) -> None:
        """Give the client a while to say what it wants."""
        self._stop_waiting()
        self._deadline = self.loop.call_later(self._limits.header_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel_timers(self) -> None:
        self._stop_waiting()
        if self._stalled is not None:
            self._stalled.cancel()
