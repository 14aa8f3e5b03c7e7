"""The options that decide what is compiled, shared by every subcommand that may compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from rusteeze.config import ACTIVATIONS, DTYPES, TARGETS, CompileOptions

Function = Callable[..., Any]

_OPTIONS = (
    click.option(
        "--target", default="cpu", show_default=True, help=f"{TARGETS}."
    ),
    click.option(
        "--dtype", default="auto", show_default=True, help=f"Arithmetic: {', '.join(DTYPES)}."
    ),
    click.option(
        "--activations",
        default="auto",
        show_default=True,
        help=f"Activations of matrix products: {', '.join(ACTIVATIONS)}.",
    ),
    click.option("--max-model-len", type=int, metavar="N", help="Longest sequence in tokens."),
    click.option("--jobs", type=int, metavar="N", help="Parallel compiler processes."),
)


def compile_options(function: Function) -> Function:
    """Add the options and pass them as one ``options: CompileOptions``."""

    @functools.wraps(function)
    def collected(
        *args: Any,
        target: str,
        dtype: str,
        activations: str,
        max_model_len: int | None,
        jobs: int | None,
        **rest: Any,
    ) -> Any:
        options = CompileOptions(target, dtype, activations, max_model_len, jobs)
        return function(*args, options=options, **rest)

    for option in reversed(_OPTIONS):
        option(collected)
    return collected
