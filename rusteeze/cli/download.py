"""``rusteeze download``: the one command that uses the network, and only when told to."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.extras import load_extra
from rusteeze.cli.output import bytes_text, print_json
from rusteeze.errors import UserError
from rusteeze.source import HUB_ID, Source

# No pickles, no code: what a compilation reads and nothing else.
PATTERNS = (
    "*.safetensors", "config.json", "generation_config.json", "*.safetensors.index.json",
    "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template*",
)  # fmt: skip


@click.command(cls=Command)
@click.argument("model_id", metavar="ID")
@click.option("--revision", help="Branch, tag or commit; default: the main branch.")
def command(model_id: str, revision: str | None) -> None:
    """Fetch configuration, tokenizer and safetensors of the Hugging Face repository ID."""
    if not HUB_ID.fullmatch(model_id):
        raise UserError(f"{model_id!r} is not a Hugging Face id like org/name")
    source = Source("hub", _fetch(model_id, revision), model_id)
    size = source.num_bytes
    if wants_json():
        print_json({"id": model_id, "path": str(source.path), "bytes": size})
        return
    click.echo(str(source.path))
    click.echo(f"{bytes_text(size)} in {len(source.files())} files", err=True)


def _fetch(model_id: str, revision: str | None) -> Path:
    hub = load_extra("huggingface_hub", "downloading")
    errors = load_extra("huggingface_hub.errors", "downloading")
    if not sys.stderr.isatty():
        load_extra("huggingface_hub.utils", "downloading").disable_progress_bars()
    try:
        folder = hub.snapshot_download(model_id, revision=revision, allow_patterns=list(PATTERNS))
    except errors.GatedRepoError as error:
        raise UserError(f"{model_id}: access must be granted first; see its page") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{model_id}: has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{model_id}: no such repository, or it is private") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"{model_id}: not downloaded, and the hub cannot be reached") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{model_id}: cannot download: {str(error).splitlines()[0]}") from error
    return Path(folder)
