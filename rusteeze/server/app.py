"""The routes, and what lies around them: request ids, hosts, CORS, the API key, errors in one shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from rusteeze.server import status
from rusteeze.server.access import ApiKey, KnownHosts, RequestId
from rusteeze.server.chat import chat_completions
from rusteeze.server.completions import completions
from rusteeze.server.errors import ApiError
from rusteeze.server.last_resort import LastResort
from rusteeze.server.openapi import openapi
from rusteeze.server.responses import responses
from rusteeze.server.service import Service
from rusteeze.server.tokenizing import detokenize, tokenize, tokenizer_info

ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info, methods=["GET"]),
    Route("/v1/models", status.models, methods=["GET"]),
    Route("/v1/models/{model:path}", status.model, methods=["GET"]),
    Route("/health", status.ready, methods=["GET"]),
    Route("/health/live", status.live, methods=["GET"]),
    Route("/health/ready", status.ready, methods=["GET"]),
    Route("/version", status.version, methods=["GET"]),
    Route("/metrics", status.metrics, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
]

_HTTP_MESSAGES = {404: "there is no such path; /openapi.json lists those that there are", 405: "this path does not take this method"}


@dataclass(frozen=True)
class AppOptions:
    """``api_key`` None: everybody may ask. ``cors_origins`` empty: no other origin may. ``hosts``: by which
    names, beside those of the machine itself, the server may be asked; None: by any."""

    api_key: str | None = None
    cors_origins: Sequence[str] = ()
    hosts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key:
            raise ValueError("an empty API key protects nothing")


def build_app(service: Service, options: AppOptions | None = None) -> Starlette:
    """The application around a service; its engine runs while the application does."""
    options = options or AppOptions()
    app = Starlette(
        routes=ROUTES, middleware=_layers(options), lifespan=_lifespan,
        exception_handlers={
            ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _disconnected,
        },
    )  # fmt: skip
    app.router.redirect_slashes = False  # what is redirected under a Host header goes where that says
    app.state.service = service
    app.state.has_key = options.api_key is not None
    return app


def _layers(options: AppOptions) -> list[Middleware]:
    """Outermost first. A preflight carries no key, so CORS comes before it."""
    layers = [Middleware(RequestId), Middleware(LastResort)]
    if options.hosts is not None:
        layers.append(Middleware(KnownHosts, names=options.hosts))
    if options.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["GET", "POST"],
                allow_headers=["*"],  # clients in browsers bring many of their own, such as x-stainless-lang
                expose_headers=["x-request-id", "warning", "retry-after"],
            )
        )  # fmt: skip
    if options.api_key is not None:
        layers.append(Middleware(ApiKey, key=options.api_key))
    return layers


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.engine.start()
    try:
        yield
    finally:
        service.engine.stop()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return status.json_response(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = _HTTP_MESSAGES.get(error.status_code, "the request was refused")
    code = "not_found" if error.status_code == 404 else "refused"
    shaped = ApiError(error.status_code, message, code, headers=dict(error.headers or {}))
    return await _api_error(request, shaped)


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
