"""Request bodies: read under limits, decoded into their schema, with errors that name the field."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request

from rusteeze.server.errors import ApiError, bad_request
from rusteeze.server.limits import Limits

T = TypeVar("T", bound=msgspec.Struct)

_JSON = "application/json"
_CLOSE = {"connection": "close"}
_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_NAMES = 16


@dataclass(frozen=True)
class Body(Generic[T]):
    """A decoded body, and the names of fields that its schema does not have."""

    value: T
    unknown: tuple[str, ...]


async def read_body(request: Request, schema: type[T], limits: Limits, strict: bool) -> Body[T]:
    """The body of a request. ApiError when it is too large, too slow, no JSON, or breaks its schema;
    ClientDisconnect when the client leaves."""
    return decode_body(await read_data(request, limits), schema, strict)


async def read_data(request: Request, limits: Limits) -> bytes:
    """The bytes of a JSON body, not decoded. Errors as those of ``read_body``."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != _JSON:
        # Also what keeps web pages out: a browser asks before it sends this type across origins.
        raise ApiError(415, f"send the body as JSON, with the header content-type: {_JSON}", "unsupported_media_type")
    try:
        async with asyncio.timeout(limits.body_seconds):
            return await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise ApiError(408, "the body took too long to arrive", "timeout", headers=_CLOSE) from None


async def _read(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(most)
    return b"".join(parts)


def _too_large(most: int) -> ApiError:
    message = f"the body may have at most {most} bytes"
    return ApiError(413, message, "body_too_large", headers=_CLOSE)


def decode_body(data: bytes, schema: type[T], strict: bool) -> Body[T]:
    """ApiError 400 when the data is no JSON object of this schema, or, when ``strict``, has a field at any
    depth that the schema does not have."""
    try:
        value = _decode(data, schema)
        names = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise bad_request(str(error), _place(str(error)), "invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_request("the body is not valid JSON", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    known = _field_names(schema)
    unknown = tuple(_plain(name) for name in names if name not in known)[:_MOST_NAMES]
    if strict:
        _refuse_unknown(msgspec.json.decode(data), msgspec.to_builtins(value), "")
    return Body(value, unknown)


def _place(message: str) -> str | None:
    """The field that msgspec complains about, also when it is not there."""
    found = [match[1] for match in (_WHERE.search(message), _MISSING.search(message)) if match and match[1]]
    return ".".join(found) or None


def _refuse_unknown(given: Any, read: Any, where: str) -> None:
    """ApiError 400 when what was given has a field that is not among what was read of it."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, part in given.items():
            path = f"{where}.{_plain(name)}" if where else _plain(name)
            if name not in read:
                raise bad_request(f"unknown field {path}", path, "unknown_field")
            _refuse_unknown(part, read[name], path)
    elif isinstance(given, list) and isinstance(read, list):
        for index, pair in enumerate(zip(given, read, strict=True)):
            _refuse_unknown(*pair, f"{where}[{index}]")


def _decode(data: bytes, schema: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=schema)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    # To JSON 8 and 8.0 are the same number, and some clients write the latter.
    return msgspec.convert(_whole(msgspec.json.decode(data)), schema)


def _whole(value: Any) -> Any:
    """The value with floats that are whole numbers as such."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(part) for part in value]
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    return value


def has_field(data: bytes, name: str) -> bool:
    """Whether the data is a JSON object with this field."""
    try:
        return name in msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # which decoding it into a schema reports


@cache  # msgspec reads the annotations anew each time, which takes longer than all else here
def _field_names(schema: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(schema))


def _plain(name: str) -> str:
    """A field's name if it is harmless in a header and a message."""
    return name if _PLAIN_NAME.fullmatch(name) else "(unprintable)"


def ignored_header(unknown: tuple[str, ...]) -> dict[str, str]:
    """Tells the client which fields had no effect."""
    return {"warning": f'299 - "ignored: {", ".join(unknown)}"'} if unknown else {}

