"""The settings of ``rusteeze serve``: command line over environment over rusteeze.yaml over defaults.

    model:
      path: SmolLM2-135M-Instruct.Q4_1.gguf
    server:
      port: 8000
      cors: {enabled: true, origins: ["https://example.org"]}
    engine:
      max_num_seqs: 64
      memory: 6GiB

A key that does not exist is an error that names the nearest one that does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rusteeze import env
from rusteeze.errors import UserError
from rusteeze.server.config_errors import sentence

Positive = Annotated[int, Meta(ge=1, le=2**40)]
Seconds = Annotated[float, Meta(ge=0, le=86400)]

MAX_FILE_BYTES = 2**20


class ModelSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``path`` is a MODEL argument; ``name`` is what clients call it."""

    path: str | None = None
    name: str | None = None
    dtype: str = "auto"
    kv_dtype: str = "auto"
    device: Annotated[str, Meta(pattern="^(auto|cpu|cuda(:auto|:[0-9]{1,4})?)$")] = "cpu"


class CorsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = False
    origins: tuple[str, ...] = ("*",)


class ServerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``allowed_hosts``: names, beside those of the machine itself, under which the server may be asked.
    Without any, a server on loopback takes its own names only, and another one takes all."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    api_key: Annotated[str, Meta(pattern=r"^\S+$")] | None = None
    allowed_hosts: tuple[str, ...] = ()
    cors: CorsSection = CorsSection()
    strict_params: bool = False
    max_queue: Annotated[int, Meta(ge=0, le=2**31)] = 1024
    max_request_tokens: Positive | None = None
    max_body_bytes: Positive = 4 * 2**20
    drain_seconds: Seconds = 30.0
    write_seconds: Seconds = 30.0


class EngineSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``memory`` is an absolute budget such as 6GiB, ``gpu_memory_utilization`` a share of what is free."""

    max_num_seqs: Annotated[int, Meta(ge=1, le=4096)] = 256
    max_num_batched_tokens: Annotated[int, Meta(ge=1, le=65536)] = 512
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    memory: str | None = None
    block_size: int = 16
    prefix_caching: bool = True
    threads: Positive | None = None


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelSection = ModelSection()
    server: ServerSection = ServerSection()
    engine: EngineSection = EngineSection()

    @property
    def memory_bytes(self) -> int | None:
        """ValueError when the text is no size."""
        return None if self.engine.memory is None else env.parse_bytes(self.engine.memory)


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a file, checked by themselves. UserError says which line or key is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path.name}: larger than {MAX_FILE_BYTES} bytes")
    try:
        plain = msgspec.yaml.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path.name}: not valid YAML: {error}") from error
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise UserError(f"{path.name}: expected sections such as model: and server:")
    check(plain, path.name)
    return plain


def check(settings: Mapping[str, Any], origin: str) -> ServeConfig:
    """The settings as a whole. UserError names the key that is wrong, after ``origin``."""
    for problem in _unknown_keys(settings, ServeConfig, ""):
        raise UserError(f"{origin}: {problem}")
    try:
        config = msgspec.convert(settings, ServeConfig)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{origin}: {sentence(str(error), settings)}") from error
    if config.engine.block_size != 16:
        raise UserError(
            f"{origin}: engine.block_size is {config.engine.block_size}; artifacts are compiled for "
            "blocks of 16 tokens, so 16 is the only value"
        )
    try:
        if config.memory_bytes == 0:
            raise ValueError("expected more than nothing")
    except ValueError as error:
        raise UserError(f"{origin}: engine.memory is {config.engine.memory!r}: {error}") from error
    return config


def _unknown_keys(found: Any, schema: type[msgspec.Struct], where: str) -> Iterator[str]:
    if not isinstance(found, Mapping):
        return  # of the wrong type, which the conversion reports
    fields = {field.name: field.type for field in msgspec.structs.fields(schema)}
    for key, value in found.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"there are {', '.join(fields)}"
            yield f"unknown key {where}{key}; {hint}"
        elif isinstance(fields[key], type) and issubclass(fields[key], msgspec.Struct):
            yield from _unknown_keys(value, fields[key], f"{where}{key}.")


def from_environment() -> dict[str, Any]:
    """The settings that environment variables give."""
    return nested({
        "model.path": env.MODEL.get(), "server.host": env.HOST.get(), "server.port": env.PORT.get(),
        "server.api_key": env.API_KEY.get(), "engine.threads": env.THREADS.get(),
    })  # fmt: skip


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"server.port": 1}`` as ``{"server": {"port": 1}}``, without what is None."""
    made: dict[str, Any] = {}
    for path, value in flat.items():
        if value is not None:
            section, _, key = path.partition(".")
            made.setdefault(section, {})[key] = value
    return made


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Several settings as one; a later one wins, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for section, values in layer.items():
            merged[section] = {**merged.get(section, {}), **(values or {})}
    return merged
