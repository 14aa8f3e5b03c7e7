"""``rusteeze chat``: turns of a conversation, from a person or a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing

import click

from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.conversation import (
    Conversation,
    completed,
    open_conversation,
    speed_line,
    summary,
)
from rusteeze.cli.devices import artifact_on, device_option
from rusteeze.cli.output import write_text
from rusteeze.cli.sampling_options import Sampling, sampling_options

HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"


@click.command(cls=Command)
@click.argument("model")
@click.option("--system", metavar="TEXT", help="System message.")
@sampling_options
@device_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
def command(
    model: str, system: str | None, sampling: Sampling, device: str, threads: int | None
) -> None:
    """Talk with MODEL. Each line of input is a turn; /reset starts anew, /exit leaves."""
    conversation = open_conversation(
        artifact_on(model, device), threads, sampling, device
    )
    with closing(conversation):
        _talk(conversation, system)


def _talk(conversation: Conversation, system: str | None) -> None:
    """Turns until there are no more lines, or /exit."""
    _reset(conversation, system)
    for line in _lines():
        if line == "/exit":
            return
        if line == "/reset":
            _reset(conversation, system)
        elif line.startswith("/"):
            click.echo(HELP, err=True)
        elif line:
            _turn(conversation, line)


def _reset(conversation: Conversation, system: str | None) -> None:
    conversation.messages.clear()
    if system is not None:
        conversation.messages.append({"role": "system", "content": system})


def _lines() -> Iterator[str]:
    """The turns of the user: lines of a pipe, or what a person types until Ctrl-D or Ctrl-C."""
    if not sys.stdin.isatty():
        yield from map(str.strip, sys.stdin)
        return
    import readline  # noqa: F401  gives `input` editing and history; an interactive terminal only

    click.echo(HELP, err=True)
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo(err=True)
            return


def _turn(conversation: Conversation, text: str) -> None:
    """Ask and answer once. A turn that cannot be served is taken back; a pipe ends there."""
    conversation.messages.append({"role": "user", "content": text})
    try:
        answer = _answer(conversation)
    except Exception as error:
        conversation.messages.pop()
        if not sys.stdin.isatty() or not getattr(error, "user_error", False):
            raise
        click.echo(f"error: {error} (/reset starts anew)", err=True)
        return
    conversation.messages.append({"role": "assistant", "content": answer})


def _answer(conversation: Conversation) -> str:
    outputs = []
    for output in conversation.answer(conversation.chat_ids()):
        outputs.append(output)
        if not wants_json():
            write_text(output.text)
    completion = completed(outputs)
    if wants_json():
        click.echo(json.dumps(summary(completion), ensure_ascii=False))
    else:
        write_text("\n")
    if sys.stderr.isatty():
        click.secho(speed_line(completion), err=True, dim=True)
    return completion.text
