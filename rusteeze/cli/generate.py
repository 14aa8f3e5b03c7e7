"""``rusteeze generate``: one prompt, one answer."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from rusteeze.cli.command import INTERRUPTED, Command, wants_json
from rusteeze.cli.conversation import (
    Conversation,
    completed,
    open_conversation,
    speed_line,
    summary,
)
from rusteeze.cli.devices import artifact_on, device_option
from rusteeze.cli.output import print_json, write_text
from rusteeze.cli.sampling_options import Sampling, sampling_options
from rusteeze.errors import UserError
from rusteeze.runtime.interface import Completion, FinishReason


@click.command(cls=Command)
@click.argument("model")
@click.option("-p", "--prompt", required=True, help="The prompt; - reads it from stdin.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--system", metavar="TEXT", help="System message, with --chat.")
@sampling_options
@click.option("--stream/--no-stream", default=True, help="Print the answer as it comes.")
@device_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
def command(
    model: str,
    prompt: str,
    chat: bool,
    system: str | None,
    sampling: Sampling,
    stream: bool,
    device: str,
    threads: int | None,
) -> None:
    """Answer one prompt with MODEL: an artifact, or a model that is compiled when it has to be."""
    if system is not None and not chat:
        raise UserError("--system needs --chat")
    text = sys.stdin.read() if prompt == "-" else prompt
    conversation = open_conversation(
        artifact_on(model, device), threads, sampling, device
    )
    with closing(conversation):
        ids = _chat_ids(conversation, system, text) if chat else conversation.prompt_ids(text)
        completion = _answer(conversation, ids, stream and not wants_json())
    if wants_json():
        print_json(summary(completion))
    else:
        click.echo(speed_line(completion), err=True)
    if completion.finish_reason == FinishReason.ABORT:
        click.get_current_context().exit(INTERRUPTED)


def _chat_ids(conversation: Conversation, system: str | None, text: str) -> list[int]:
    if system is not None:
        conversation.messages.append({"role": "system", "content": system})
    conversation.messages.append({"role": "user", "content": text})
    return conversation.chat_ids()


def _answer(conversation: Conversation, prompt_ids: list[int], stream: bool) -> Completion:
    """The answer, printed on the way, or at its end when not streaming, unless JSON is wanted."""
    outputs = []
    for output in conversation.answer(prompt_ids):
        outputs.append(output)
        if stream:
            write_text(output.text)
    completion = completed(outputs)
    if not wants_json():
        write_text("\n" if stream else completion.text + "\n")
    return completion
