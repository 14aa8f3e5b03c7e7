"""From sequences to an HTTP answer, whole or as a stream: one path for all endpoints.

A client that leaves, in any state, has its sequences cancelled; they end in the engine's next step. A
stream ends as its renderer says; one that fails on the way ends with an error event instead, never
silently.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from rusteeze.runtime.engine_thread import EngineStopped
from rusteeze.runtime.interface import (
    Asked,
    Completion,
    FinishReason,
    QueueFull,
    RequestError,
    RequestOutput,
)
from rusteeze.server.access import request_id
from rusteeze.server.connection import PIECES
from rusteeze.server.errors import ApiError, bad_request, internal, overloaded, unavailable
from rusteeze.server.pieces import Pieces
from rusteeze.server.replies import Reply
from rusteeze.server.service import Service

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Renderer(Protocol):
    """Puts the outputs of sequences into one endpoint's wire format."""

    def events(self, index: int, output: RequestOutput) -> Iterable[bytes]:
        """The events that one output of sequence ``index`` makes."""
        ...

    def text_event(self, index: int, output: RequestOutput) -> bytes | None:
        """The same in short, where the output adds nothing but a text; None where there is more to it.

        May be called in the engine's thread, while nothing else of the renderer is."""
        ...

    def last_events(self) -> Iterable[bytes]:
        """The events after the last output."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which has failed."""
        ...

    def whole(self, completions: Sequence[Completion]) -> msgspec.Struct: ...


class Answer:
    """The answer to one request; an ASGI application, as Starlette's responses are.

    The sequences are submitted at once, so that a refusal is an ordinary error."""

    def __init__(
        self, service: Service, asked: Sequence[Asked], renderer: Renderer, stream: bool,
        headers: dict[str, str],
    ) -> None:  # fmt: skip
        self._service = service
        self._renderer = renderer
        self._stream = stream
        self._headers = [(k.encode(), v.encode()) for k, v in headers.items()]
        self._reply, self._ids = submit(service, asked, each=stream)
        self._request_id = ""
        self._pieces: Pieces | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request_id = request_id(scope)
        self._pieces = scope.get("extensions", {}).get(PIECES)
        watcher = asyncio.create_task(self._cancel_on_disconnect(receive))
        try:
            await (self._send_stream(send) if self._stream else self._send_whole(send))
        except ClientDisconnect:
            pass  # there is nobody left to tell
        finally:
            watcher.cancel()
            if self._pieces is not None:
                self._pieces.close()
            self._service.engine.cancel(self._ids)

    async def _cancel_on_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._service.engine.cancel(self._ids)

    async def _send_whole(self, send: Send) -> None:
        outputs: list[list[RequestOutput]] = [[] for _ in self._ids]
        for index, output in await self._reply.take():
            self._check(output)
            outputs[index].append(output)
        body = _encode(self._renderer.whole([Completion.collect(each) for each in outputs]))
        start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send(_start(start + self._headers))
        await self._send(send, body, more=False)

    async def _send_stream(self, send: Send) -> None:
        batch = await self._reply.take()
        for _, output in batch:
            self._check(output)  # nothing is sent yet, so this is still an ordinary error
        await send(_start(EVENT_STREAM + self._headers))
        try:
            while batch:
                await self._send(send, b"".join(self._events(batch)))
                batch = await self._take_next()
            await self._send(send, b"".join(self._renderer.last_events()), more=False)
        except ApiError as error:
            await self._send(send, self._renderer.failure(error), more=False)

    async def _take_next(self) -> list[tuple[int, RequestOutput]]:
        """Further outputs, after those that the engine's thread could send itself."""
        if self._pieces is not None:
            self._pieces.open()
            self._reply.direct = self._send_at_once
        return await self._reply.take()

    def _events(self, batch: Iterable[tuple[int, RequestOutput]]) -> list[bytes]:
        found: list[bytes] = []
        for index, output in batch:
            self._check(output)
            text = self._renderer.text_event(index, output)
            found += self._renderer.events(index, output) if text is None else [text]
        return found

    def _send_at_once(self, index: int, output: RequestOutput) -> bool:
        """In the engine's thread, send a piece of text past the tasks and layers that all else goes through. Nearly
        all of a stream is such pieces."""
        assert self._pieces is not None
        try:
            text = self._renderer.text_event(index, output)
        except Exception:
            return False  # the task fails over it too, and its fault ends this request alone
        return text is not None and (not text or self._pieces.write(text))

    def _check(self, output: RequestOutput) -> None:
        """ApiError or ClientDisconnect when the sequence did not end by itself."""
        if output.finish_reason is FinishReason.ERROR:
            _log.error("request %s failed: %s", self._request_id, output.error)
            raise internal()
        if output.finish_reason is FinishReason.ABORT:
            if self._service.draining:
                raise unavailable("the server is shutting down", 1)
            raise ClientDisconnect

    @staticmethod
    async def _send(send: Send, body: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})


def submit(service: Service, asked: Sequence[Asked], each: bool) -> tuple[Reply, list[str]]:
    """Submit the sequences of one request together. ApiError when they cannot be taken."""
    try:
        return service.engine.submit(asked, each)
    except QueueFull:
        raise overloaded(service.limits.retry_after_seconds) from None
    except RequestError as error:
        raise bad_request(str(error)) from error
    except EngineStopped:
        wait = service.limits.retry_after_seconds
        raise unavailable("the engine has stopped", wait) from None


def _start(headers: list[tuple[bytes, bytes]]) -> dict[str, object]:
    return {"type": "http.response.start", "status": 200, "headers": headers}
