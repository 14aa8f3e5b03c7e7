"""What every subcommand shares: ``-l/--log-level`` and ``--json``, before or after its name."""

from __future__ import annotations

from typing import Any

import click

from rusteeze import env

_JSON = "rusteeze.json"
_LEVEL = "rusteeze.log_level"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Command(click.Command):
    """A subcommand that also takes the common options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()

    def invoke(self, ctx: click.Context) -> Any:
        _start_logging(ctx.meta.get(_LEVEL) or env.log_level())
        return super().invoke(ctx)


class Group(click.Group):
    """A subcommand with subcommands of its own, each of which takes the common options."""

    command_class = Command


def common_options() -> list[click.Parameter]:
    """Fresh options for one command. Their values are kept in the context, shared by all levels."""
    return [
        click.Option(
            ["-l", "--log-level"],
            type=click.Choice(env.LOG_LEVELS),
            expose_value=False,
            callback=_keep_level,
            help="What to log on stderr.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_keep_json,
            help="Print the result as JSON.",
        ),
    ]


def wants_json() -> bool:
    """Whether --json was given to the running command, or before its name."""
    return bool(click.get_current_context().meta.get(_JSON))


def wants_traceback(ctx: click.Context) -> bool:
    """Whether faults should come with where they happened: -l debug."""
    return ctx.meta.get(_LEVEL) == "debug"


def _keep_level(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        ctx.meta[_LEVEL] = value


def _keep_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_JSON] = True


def _start_logging(level: str) -> None:
    # Imported here: --help has nothing to log and must be fast.
    import logging

    logging.basicConfig(level=level.upper(), format="%(levelname)s %(message)s", force=True)
