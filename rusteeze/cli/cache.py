"""``rusteeze cache``: the compiled artifacts that are kept for reuse."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rusteeze import env
from rusteeze.artifact import cache
from rusteeze.artifact.store import verify
from rusteeze.cli.command import Group, wants_json
from rusteeze.cli.output import bytes_text, print_json, print_table
from rusteeze.errors import ArtifactError, UserError

WIDTH = 120  # keys are for copying: a line each, however narrow the terminal is


@click.group(cls=Group)
def command() -> None:
    """List, check and free the cache of artifacts."""


@command.command("path")
def path_command() -> None:
    """Show where the cache lies."""
    folder = str(cache.cache_dir())
    print_json({"path": folder}) if wants_json() else click.echo(folder)


@command.command("ls")
def ls_command() -> None:
    """List the artifacts, the one used last first."""
    found = cache.entries()
    if wants_json():
        print_json(
            [{"model": _model(e.path), "key": e.key, "path": str(e.path), "bytes": e.bytes, "used": e.used} for e in found]
        )
        return
    rows = [(e.key, bytes_text(e.bytes), _ago(e.used), _model(e.path)) for e in found]
    title = f"artifacts: {len(found)}, {bytes_text(cache.total_bytes())} in {cache.cache_dir()}"
    print_table(title, ("key", "size", "last used", "model"), rows, width=WIDTH)


@command.command("gc")
@click.option(
    "--max-size", metavar="SIZE", help="Also remove the artifacts used longest ago above SIZE."
)
def gc_command(max_size: str | None) -> None:
    """Free leftovers of crashes and quarantined artifacts."""
    _print_freed(cache.gc(_size(max_size)))


@command.command("clear")
def clear_command() -> None:
    """Remove every artifact. They are compiled again when needed."""
    _print_freed(cache.clear())


@command.command("verify")
def verify_command() -> None:
    """Hash every file of every artifact; exit code 2 when one is broken."""
    faults = cache.verify_all()
    if wants_json():
        print_json(faults)
    else:
        print_table("", ("key", "state"), [(k, fault or "ok") for k, fault in faults.items()])
    broken = [key for key, fault in faults.items() if fault]
    if broken:
        raise ArtifactError(f"broken, to be compiled again at the next use: {', '.join(broken)}")


def _model(artifact: Path) -> str:
    """What was compiled, and how."""
    try:
        facts = verify(artifact).facts
    except ArtifactError:
        return "(broken)"
    return f"{facts.get('model')}, {facts.get('activations')}, {facts.get('max_model_len')} tokens"


def _size(text: str | None) -> int | None:
    try:
        return None if text is None else env.parse_bytes(text)
    except ValueError as error:
        raise UserError(f"--max-size {text}: {error}") from error


def _print_freed(num_bytes: int) -> None:
    if wants_json():
        print_json({"freed_bytes": num_bytes})
    else:
        click.echo(f"freed {bytes_text(num_bytes)}")


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now" if seconds < 60 else "a minute ago"
