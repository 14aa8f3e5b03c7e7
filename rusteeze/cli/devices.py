"""``--device``: where a model runs, and what it has to be compiled for to run there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import rusteeze.source
from rusteeze.cli.artifacts import artifact_for
from rusteeze.config import CompileOptions
from rusteeze.runtime.backend import gpu_architecture

HELP = "cpu, cuda (the newest GPU), cuda:N, or auto: a GPU if there is one that fits."


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--device``, passed as ``device: str``."""
    return click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help=HELP)(function)


def artifact_on(model: str, device: str) -> Path:
    """The artifact that MODEL names, or compiles to for ``device``. UserError when there is no such model."""
    source = rusteeze.source.resolve(model)
    return source.path if source.kind == "artifact" else artifact_for(model, options_for(device))


def options_for(device: str, dtype: str = "auto") -> CompileOptions:
    """How a model is compiled, should it have to be, to run on ``device``. UserError when a GPU is asked
    for by name and there is none."""
    architecture = gpu_architecture(device)
    target = f"cuda:{architecture}" if architecture else "cpu"
    return CompileOptions(target=target, dtype=dtype)
