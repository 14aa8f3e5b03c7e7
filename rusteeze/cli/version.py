"""``rusteeze version``: what is installed, without importing any of it."""

from __future__ import annotations

import click

from rusteeze.cli.command import Command, wants_json
from rusteeze.version import compiler_version, versions


@click.command(cls=Command)
def command() -> None:
    """Show the versions of Rusteeze, Python and the packages that matter."""
    found = versions() | {"compiler": compiler_version()}
    if wants_json():
        from rusteeze.cli.output import print_json

        print_json(found)
        return
    width = max(map(len, found))
    for name, version in found.items():
        click.echo(f"{name:<{width}}  {version or 'not installed'}")
