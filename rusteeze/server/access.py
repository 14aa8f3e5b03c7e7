"""Who may ask: an optional bearer key, denied by default on every path but two.

An ASGI layer around the whole application, so that a new route is closed until it is named here.
"""

from __future__ import annotations

import hmac
import uuid

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rusteeze.server.errors import ApiError

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})


class ApiKey:
    """Lets requests with ``Authorization: Bearer KEY`` pass, compared in constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._wanted = b"Bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows(scope):
            error = ApiError(401, "the API key is missing or wrong", "invalid_api_key")
            headers = [(b"www-authenticate", b"Bearer"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": msgspec.json.encode(error.body())})
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)


class RequestId:
    """Gives every answer an ``x-request-id``, under which the log speaks of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, tagged)
