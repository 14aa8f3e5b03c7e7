"""Errors as the OpenAI API shapes them. Messages are fit for clients: no paths, no addresses, no traces."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}  # fmt: skip


class ApiError(Exception):
    """A refusal. ``param`` names the field at fault, ``code`` the case in one word."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> ErrorBody:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return ErrorBody(
            ErrorDetail(self.message, _TYPES.get(self.status, kind), self.param, self.code)
        )


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, code, param)


def internal() -> ApiError:
    """What a client learns of a fault of ours; the log has the rest."""
    return ApiError(500, "internal error", "internal_error")


def unavailable(message: str, retry_after: int) -> ApiError:
    headers = {"retry-after": str(retry_after)}
    return ApiError(503, message, "unavailable", headers=headers)


def overloaded(retry_after: int) -> ApiError:
    headers = {"retry-after": str(retry_after)}
    message = "too many requests are waiting; try again later"
    return ApiError(429, message, "queue_full", headers=headers)
