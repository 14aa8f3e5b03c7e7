"""Small parts of an answer, written at once by whoever makes them, past the event loop.

A streamed token costs more in waking the loop's thread, which takes a core from the kernels of the next step, than
in the system call that sends it; so the engine's thread makes that call itself. It never waits: what the socket does
not take, the loop writes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Pieces:
    """The chunked body of one answer. Only ``write`` may be called outside the event loop.

    It is open only while the loop has nothing of its own to write on the connection, so that everything arrives
    in order."""

    def __init__(self, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop) -> None:
        self._cycle = cycle
        self._loop = loop
        self._is_open = False
        self._rest = b""  # what the socket has not taken; while there is any, it is closed
        self._lock = threading.Lock()

    def open(self) -> None:
        """Let pieces be written, if the body has begun and nothing waits to be sent before them."""
        self._write_rest()
        cycle, transport = self._cycle, self._cycle.transport
        has_begun = bool(cycle.chunked_encoding) and not cycle.response_complete
        is_free = not transport.is_closing() and not transport.get_write_buffer_size()
        with self._lock:
            self._is_open = has_begun and is_free and not cycle.disconnected

    def close(self) -> None:
        """Write no more. Once this has returned the loop may write, or the socket be closed and its number
        belong to another."""
        with self._lock:
            self._is_open = False
        self._write_rest()

    def write(self, data: bytes) -> bool:
        """Send data, which is not empty, as a chunk; False, and nothing is sent, when that cannot be done now."""
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        with self._lock:
            if not self._is_open:
                return False
            sent = self._send(chunk)
            if sent < len(chunk):
                self._is_open, self._rest = False, chunk[sent:]
                self._loop.call_soon_threadsafe(self._write_rest)
            return True

    def _write_rest(self) -> None:
        """In the loop, before anything else that it writes."""
        rest, self._rest = self._rest, b""
        if rest and not self._cycle.transport.is_closing():
            self._cycle.transport.write(rest)

    def _send(self, chunk: bytes) -> int:
        # An error is left to the loop, whose own attempt finds it too.
        with suppress(OSError):
            return os.write(self._cycle.transport.get_extra_info("socket").fileno(), chunk)
        return 0
