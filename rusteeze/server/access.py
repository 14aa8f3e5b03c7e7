"""Who may ask, under which name of this server: a bearer key, and a list of hosts. Both deny by default.

ASGI layers around the whole application, so that a new route is closed until it is named here.
"""

from __future__ import annotations

import hmac
import ipaddress
import uuid
from collections.abc import Iterable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rusteeze.server.errors import ApiError
from rusteeze.server.layer import Layer

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})


class ApiKey(Layer):
    """Lets requests with ``Authorization: Bearer KEY`` pass, compared in constant time."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        super().__init__(app)
        self._wanted = b"Bearer " + key.encode()

    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS and not self._knows(scope):
            error = ApiError(401, "the API key is missing or wrong", "invalid_api_key")
            await refuse(send, error, (b"www-authenticate", b"Bearer"))
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)


class KnownHosts(Layer):
    """Lets requests pass that call this server by a name of the machine itself, or by one of ``names``.

    A web page can give its own name the address 127.0.0.1 and then ask whatever listens there, past all
    rules about origins; but it cannot ask under another name than its own.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        super().__init__(app)
        self._names = frozenset(name.lower() for name in names)

    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS and not self._knows(scope):
            message = "this server is not known by that host name; see allowed_hosts in its settings"
            await refuse(send, ApiError(403, message, "unknown_host"))
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) != 1:
            return False
        name = host_name(given[0].decode("latin-1"))
        return name in self._names or is_loopback(name)


def host_name(header: str) -> str:
    """The name or address of a Host header, without port, brackets and the dot at its end."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().removesuffix(".")


def is_loopback(name: str) -> bool:
    """Whether a host name or address is this machine to itself, whatever any name server says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def refuse(send: Send, error: ApiError, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error, from outside the application."""
    given = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    found = [*headers, *given, (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": error.status, "headers": found})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error.body())})


class RequestId(Layer):
    """Gives every answer an ``x-request-id``, under which the log speaks of it."""

    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, tagged)


def request_id(scope: Scope) -> str:
    found: str = scope["state"]["request_id"]
    return found
