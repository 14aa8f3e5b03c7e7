"""``rusteeze serve``: a model behind the OpenAI API."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import click

import rusteeze.source
from rusteeze.cli.artifacts import artifact_for, cached, why_not_cached
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.devices import options_for
from rusteeze.cli.output import bytes_text, print_json
from rusteeze.config import CompileOptions
from rusteeze.errors import UserError
from rusteeze.runtime.memory_plan import MemoryPlan
from rusteeze.server import config as settings
from rusteeze.server.access import is_loopback
from rusteeze.server.app import AppOptions, build_app
from rusteeze.server.boot import load_model, service_of
from rusteeze.server.config import ServeConfig
from rusteeze.server.serving import bind, run

_log = logging.getLogger(__name__)

# Option to the setting that it overrides.
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "host": ("server.host", {"help": "Address to listen on.  [default: 127.0.0.1]"}),
    "port": ("server.port", {"type": int, "help": "0 takes a free one.  [default: 8000]"}),
    "api_key": ("server.api_key", {"help": "Key that clients must send; better in RUSTEEZE_API_KEY."}),
    "served_model_name": ("model.name", {"help": "What clients call the model."}),
    "dtype": ("model.dtype", {"help": "Arithmetic, should the model be compiled."}),
    "device": ("model.device", {"help": "cpu, cuda, cuda:N or auto.  [default: cpu]"}),
    "kv_dtype": ("model.kv_dtype", {"help": "What the cache holds, should the model be compiled."}),
    "max_num_seqs": ("engine.max_num_seqs", {"type": int, "help": "Sequences that run at once.  [default: 256]"}),
    "max_num_batched_tokens": (
        "engine.max_num_batched_tokens", {"type": int, "help": "Tokens computed in one step.  [default: 512]"}
    ),
    "gpu_memory_utilization": (
        "engine.gpu_memory_utilization", {"type": float, "help": "Share of the free memory to use.  [default: 0.9]"}
    ),
    "memory": ("engine.memory", {"metavar": "SIZE", "help": "Use this much memory in all, such as 6GiB."}),
    "block_size": ("engine.block_size", {"type": int, "help": "Tokens in a cache block; 16 is the only value."}),
    "prefix_caching": (
        "engine.prefix_caching", {"default": None, "help": "Compute equal beginnings of prompts once.  [default: on]"}
    ),
    "threads": ("engine.threads", {"type": int, "help": "CPU threads.  [default: one per core]"}),
    "max_queue": ("server.max_queue", {"type": int, "help": "Sequences that may wait.  [default: 1024]"}),
    "max_request_tokens": (
        "server.max_request_tokens", {"type": int, "help": "Most tokens that one request may ask for."}
    ),
    "drain_seconds": (
        "server.drain_seconds", {"type": float, "help": "Time to finish after SIGTERM.  [default: 30]"}
    ),
    "strict_params": (
        "server.strict_params", {"is_flag": True, "default": None, "help": "Refuse unknown fields."}
    ),
}  # fmt: skip


_SWITCHES = {"prefix_caching"}  # what is on unless it is switched off


def _serve_options(function: Any) -> Any:
    for name, (_, attributes) in reversed(_OPTIONS.items()):
        option = name.replace("_", "-")
        switch = f"--{option}/--no-{option}" if name in _SWITCHES else f"--{option}"
        click.option(switch, **attributes)(function)
    return function


@click.command(cls=Command)
@click.argument("model", required=False)
@click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="A rusteeze.yaml."
)
@_serve_options
def command(model: str | None, file: Path | None, **options: Any) -> None:
    """Serve MODEL: an artifact, or a model that is compiled when it has to be.

    Options beat environment variables, those beat the file. Ctrl-C or SIGTERM lets requests finish;
    a second one stops at once.
    """
    start = time.perf_counter()
    given = {_OPTIONS[name][0]: value for name, value in options.items()}
    config = settings.check(
        settings.layered(
            settings.read_file(file) if file else {},
            settings.from_environment(),
            settings.nested({"model.path": model, **given}),
        ),
        "settings",
    )
    if config.model.path is None:
        raise UserError("no model: name one, or set model.path in the file, or RUSTEEZE_MODEL")
    _serve(config, config.model.path, start)


def _serve(config: ServeConfig, path: str, start: float) -> None:
    phases, lap = {}, start

    def finished(phase: str) -> None:
        nonlocal lap
        phases[phase], lap = time.perf_counter() - lap, time.perf_counter()

    listener = bind(config.server.host, config.server.port)
    finished("settings")
    source = rusteeze.source.resolve(path)
    if source.kind == "artifact":
        artifact, found = artifact_for(path, CompileOptions(kv_dtype=config.model.kv_dtype)), "given"
    else:
        options = options_for(config.model.device, config.model.dtype, config.model.kv_dtype)
        hit = cached(source, options)
        found = "hit" if hit else why_not_cached(source, options)
        artifact = hit or artifact_for(path, options)
    finished("artifact")
    model, memory = load_model(artifact, config)
    finished("load")
    name = config.model.name or str(model.manifest.facts.get("model") or source.name)
    service = service_of(model, name, artifact, config, memory)
    service.metrics.startup(phases, found)
    app = build_app(service, _app_options(config))
    _announce(config, name, memory, listener.getsockname()[1], phases)
    run(app, service, listener)
    model.close()


def _app_options(config: ServeConfig) -> AppOptions:
    server, cors = config.server, config.server.cors
    checks_hosts = is_loopback(server.host) or bool(server.allowed_hosts)
    return AppOptions(
        server.api_key, cors.origins if cors.enabled else (),
        server.allowed_hosts if checks_hosts else None,
    )  # fmt: skip


def _announce(
    config: ServeConfig, name: str, memory: MemoryPlan, port: int, phases: dict[str, float]
) -> None:
    """Where the server listens, and what it does with memory: for people, or as one JSON object."""
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    url = f"http://{host}:{port}"
    if not is_loopback(config.server.host) and not config.server.api_key:
        _log.warning("listening on %s without an API key: whoever reaches it may use it", host)
    if memory.max_model_len < memory.asked_model_len:
        _log.warning(
            "memory suffices for %d tokens a sequence, not for the model's %d",
            memory.max_model_len, memory.asked_model_len,
        )  # fmt: skip
    if wants_json():
        plan = {purpose: count for purpose, count, _ in memory.rows()}
        print_json({"url": url, "model": name, "memory": plan, "startup_seconds": phases})
        return
    click.echo(f"{name}: up to {config.engine.max_num_seqs} sequences of {memory.max_model_len} tokens")
    for purpose, count, lever in memory.rows():
        click.echo(f"  {purpose:24} {bytes_text(count):>10}   {lever}")
    click.echo(f"listening on {url} after {sum(phases.values()):.2f} s")
