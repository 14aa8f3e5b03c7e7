"""Health, version, models and metrics: what operators and clients ask before they send work."""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from rusteeze.server.common_schema import HealthBody, ModelCard, ModelList, VersionBody
from rusteeze.server.prompts import check_model
from rusteeze.server.service import Service
from rusteeze.version import own_version


def json_response(
    value: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


async def live(request: Request) -> Response:
    """200 while the event loop answers and the engine moves; else this process should be restarted."""
    return _health(_service(request).sickness)


async def ready(request: Request) -> Response:
    """200 while requests should be sent here. No generation is needed to know."""
    return _health(_service(request).obstacle)


def _health(fault: str | None) -> Response:
    headers = {"cache-control": "no-store"}
    return json_response(HealthBody(fault or "ok"), 503 if fault else 200, headers)


async def version(request: Request) -> Response:
    return json_response(VersionBody(own_version()))


async def models(request: Request) -> Response:
    return json_response(ModelList([_card(_service(request))]))


async def model(request: Request) -> Response:
    service = _service(request)
    check_model(service, request.path_params["model"])
    return json_response(_card(service))


async def metrics(request: Request) -> Response:
    return Response(_service(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _card(service: Service) -> ModelCard:
    return ModelCard(service.model.name, service.model.created, service.model.max_model_len)


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found
