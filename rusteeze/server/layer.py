"""What lies around the whole application: layers that every HTTP request passes through."""

from __future__ import annotations

from abc import ABC, abstractmethod

from starlette.types import ASGIApp, Receive, Scope, Send


class Layer(ABC):
    """An ASGI layer. What is no HTTP, such as the lifespan, passes untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        through = self.request if scope["type"] == "http" else self._app
        await through(scope, receive, send)

    @abstractmethod
    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on to the application below."""
