"""``rusteeze compile``: a model in, an artifact out."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rusteeze.artifact.files import tree_bytes
from rusteeze.artifact.store import check_destination
from rusteeze.cli.artifacts import artifact_for, compile_source, compiled_anew
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.compile_options import compile_options
from rusteeze.cli.output import bytes_text, print_json
from rusteeze.config import CompileOptions


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write, such as model.rz."
)
@click.option("--force", is_flag=True, help="Compile again what the cache holds.")
@compile_options
def command(model: str, output: Path | None, force: bool, options: CompileOptions) -> None:
    """Compile MODEL: a model folder, a GGUF file or a downloaded Hugging Face id.

    Without -o the artifact goes to the cache, where the other commands find it. What lies there is not
    compiled again, so there is nothing to watch with RUSTEEZE_DEBUG or RUSTEEZE_DUMP, unless --force.
    """
    start = time.perf_counter()
    if output:
        check_destination(output)  # before the compiler is imported
        artifact = compile_source(model, output, options)
    else:
        artifact = compiled_anew(model, options) if force else artifact_for(model, options)
    seconds = time.perf_counter() - start
    size = tree_bytes(artifact)
    if wants_json():
        print_json({"artifact": str(artifact), "bytes": size, "seconds": round(seconds, 3)})
        return
    click.echo(str(artifact))
    click.echo(f"{bytes_text(size)}, {seconds:.1f} s", err=True)
