"""``rusteeze validate``: is it whole, does it run, and how close is it to the original?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import rusteeze.source
from rusteeze.artifact.store import verify
from rusteeze.cli.accuracy import compare, compiled_logits
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.compile_options import kv_dtype_option
from rusteeze.cli.conversation import Conversation, completed, open_conversation
from rusteeze.cli.devices import artifact_on, device_option
from rusteeze.cli.extras import load_extra
from rusteeze.cli.output import bytes_text, print_json, print_table
from rusteeze.cli.sampling_options import Sampling
from rusteeze.errors import UserError
from rusteeze.server.config import read_file
from rusteeze.source import Source

CONFIG = "config.json"
SETTINGS_SUFFIXES = (".yaml", ".yml")
# Of a longer text the beginning is compared: logits of all tokens are held at once.
MAX_TOKENS = 1024

PASSAGE = """\
The lighthouse stood at the end of a long spit of sand, and at high tide the sea closed behind anyone \
who had walked out to it. Every evening the keeper climbed one hundred and twelve steps, trimmed the \
wick and wound the clockwork that turned the lamp. In winter the wind pressed so hard against the \
glass that he could feel the tower lean. He kept a book in which he wrote down the weather, the ships \
that passed and, now and then, a thought: that a light is of no use to the one who tends it, and that \
this is perhaps the best thing about it."""


@click.command(cls=Command)
@click.argument("model")
@click.option("--against", type=click.Choice(["hf"]), help="Compare with transformers, in float32.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text to compare on; a short passage by default.",
)
@device_option
@kv_dtype_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
def command(
    model: str, against: str | None, text: Path | None, device: str, kv_dtype: str, threads: int | None
) -> None:
    """Check MODEL: an artifact, a model (compiled when it has to be), a config.json alone, or a
    rusteeze.yaml for serve."""
    if Path(model).suffix in SETTINGS_SUFFIXES:
        _print([_check_settings(Path(model).expanduser())])
        return
    config = _lone_config(Path(model).expanduser())
    if config is not None:
        _print([_check_config(config)])
        return
    source = rusteeze.source.resolve(model)
    if against and source.kind == "artifact":
        raise UserError("--against hf needs the model itself, not its artifact")
    passage = text.read_text(encoding="utf-8") if text else PASSAGE
    _print(_checks(source, device, kv_dtype, against, passage, threads))


def _checks(
    source: Source, device: str, kv_dtype: str, against: str | None, passage: str, threads: int | None
) -> Iterator[dict[str, Any]]:
    artifact = artifact_on(str(source.path), device, kv_dtype)
    yield _check_files(artifact)
    conversation = open_conversation(artifact, threads, Sampling({"max_tokens": 4}), device)
    yield _check_run(conversation)
    if against:
        yield _check_accuracy(conversation, source, passage)


def _lone_config(path: Path) -> Path | None:
    """The config.json that is all there is of a model: named itself, or in a folder without weights."""
    if path.name == CONFIG and path.is_file():
        return path
    has_config = (path / CONFIG).is_file() and not (path / "manifest.json").exists()
    return path / CONFIG if has_config and not list(path.glob("*.safetensors")) else None


def _check_settings(path: Path) -> dict[str, Any]:
    """What the file says, section by section."""
    return {"check": "settings", **read_file(path)}


def _check_config(path: Path) -> dict[str, Any]:
    dry_run = load_extra("rusteeze.frontend.dry_run", "checking a configuration").dry_run
    return {"check": "config", **dry_run(path)}


def _check_files(artifact: Path) -> dict[str, Any]:
    records = verify(artifact, full=True).files.values()
    return {"check": "files", "files": len(records), "bytes": sum(r.bytes for r in records)}


def _check_run(conversation: Conversation) -> dict[str, Any]:
    """A few tokens, to see that code, weights and tokenizer work together."""
    completion = completed(list(conversation.answer(conversation.prompt_ids("Once upon a time"))))
    return {"check": "run", "tokens": len(completion.token_ids), "text": completion.text}


def _check_accuracy(conversation: Conversation, source: Source, text: str) -> dict[str, Any]:
    reference = load_extra("rusteeze.frontend.reference", "comparing").reference_logits
    token_ids = conversation.prompt_ids(text)[:MAX_TOKENS]
    try:
        ours = compiled_logits(conversation.model.executor, token_ids)
        accuracy = compare(ours, reference(source.path, token_ids), token_ids)
    except ValueError as error:
        raise UserError(str(error)) from error
    return {"check": "accuracy", **asdict(accuracy)}


def _print(results: Iterable[dict[str, Any]]) -> None:
    """Each result as soon as it is there; as one JSON list when JSON is wanted."""
    if wants_json():
        print_json(list(results))
        return
    for result in results:
        title = f"{result.pop('check')}: ok"
        print_table(title, ("what", "value"), [(n, _cell(n, v)) for n, v in result.items()])


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return bytes_text(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
