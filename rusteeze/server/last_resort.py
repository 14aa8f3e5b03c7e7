"""What a client is told when no endpoint has ended its request: after a fault, or at the very end of a shutdown.

An answer that has not begun becomes an error; a stream that has gets an error event and a proper end.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send

from rusteeze.server.access import refuse, request_id
from rusteeze.server.errors import ApiError, internal, unavailable
from rusteeze.server.events import error_event
from rusteeze.server.layer import Layer

_log = logging.getLogger(__name__)

EVENT_STREAM_TYPE = b"text/event-stream"
LAST_WORD_SECONDS = 1.0
"""How long a client may take to read its error while everybody else has left."""


class LastResort(Layer):
    """Ends every request: faults are logged with its id, and a cancelled one (the server stops) is told so."""

    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        progress = _Progress(send)
        try:
            await self._app(scope, receive, progress.send)
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await progress.end(unavailable("the server is shutting down", 1))
        except Exception:
            _log.exception("request %s failed", request_id(scope))
            await progress.end(internal())


class _Progress:
    """Passes an answer on and remembers how far it has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._ended = self._streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            types = [value for name, value in message["headers"] if name == b"content-type"]
            self._streams = any(value.startswith(EVENT_STREAM_TYPE) for value in types)
        elif not message.get("more_body", False):
            self._ended = True
        await self._send(message)

    async def end(self, error: ApiError) -> None:
        if not self._begun:
            await refuse(self._send, error)
        elif self._streams and not self._ended:
            await self._send({"type": "http.response.body", "body": error_event(error)})
