"""``rusteeze``: finds the subcommand's module when it is needed, and turns errors into one line.

Help comes from the table below, so that ``rusteeze --help`` imports click and nothing else.
Exit codes: 0 done, 1 a fault of ours, 2 something the caller can mend, 130 Ctrl-C.
"""

from __future__ import annotations

import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

from rusteeze.cli.command import INTERRUPTED, common_options, wants_traceback

# Subcommand to its line of help; the module has the same name and holds the click command `command`.
SUBCOMMANDS = {
    "compile": "Compile a model into an artifact.",
    "quantize": "Make a model with quantised weights.",
    "generate": "Answer one prompt.",
    "chat": "Talk with a model, turn by turn.",
    "serve": "Serve a model over HTTP, as the OpenAI API.",
    "info": "Show what a model or an artifact holds.",
    "validate": "Check an artifact, a model or its accuracy.",
    "benchmark": "Measure speed, latency and memory.",
    "autotune": "Search for the fastest kernels on this machine.",
    "profile": "Show where the time of a step goes.",
    "opt": "Run passes on a graph in text form.",
    "download": "Fetch a model from the Hugging Face hub.",
    "cache": "List, check and free the cache of artifacts.",
    "version": "Show versions.",
}

DEBUG_HINT = "(add -l debug for the traceback)"
MOST_CHARACTERS = 1000


class LazyGroup(click.Group):
    """A group whose subcommands are modules beside this one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = import_module(f"rusteeze.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except Exception as error:
            _report(ctx, error)


def _report(ctx: click.Context, error: Exception) -> NoReturn:
    """One line on stderr and the exit code; the traceback too with -l debug."""
    if wants_traceback(ctx):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    text = " ".join(str(error).split())
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + " …"
    # An OSError names a file or a limit of the caller's machine.
    if getattr(error, "user_error", False) or isinstance(error, OSError):
        click.echo(f"error: {text}", err=True)
        ctx.exit(2)
    click.echo(f"error: {type(error).__name__}: {text} {DEBUG_HINT}", err=True)
    ctx.exit(1)


@click.group(
    cls=LazyGroup,
    params=common_options(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
def main() -> None:
    """Rusteeze compiles language models and runs them."""
