"""``rusteeze quantize``: a model in, the same model with quantised weights out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.extras import load_extra
from rusteeze.cli.output import bytes_text, print_json
from rusteeze.cli.progress import progress

BITS, METHODS = ("2", "3", "4", "8"), ("rtn", "gptq", "awq", "fp8")
FORMATS = ("gptq", "awq", "compressed-tensors", "gguf")


@click.command(cls=Command)
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--method", type=click.Choice(METHODS), default="gptq", show_default=True, help="How to round.")
@click.option("--bits", type=click.Choice(BITS), default="4", show_default=True, help="Bits of a weight.")
@click.option(
    "--group", type=int, default=128, show_default=True, metavar="N", help="Columns that share a scale."
)
@click.option("--sym", is_flag=True, help="No zero points: codes lie around the middle one.")
@click.option("--act-order/--no-act-order", default=None, help="gptq: the columns first that matter most (it does).")
@click.option(
    "--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="TEXT",
    help="Text that the model reads meanwhile (gptq, awq, --target-bits); Python's language reference by default.",
)  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=512), default=32768, show_default=True, help="Tokens of it.")
@click.option("--format", type=click.Choice(FORMATS), default="compressed-tensors", show_default=True,
              help="Layout of the files.")  # fmt: skip
@click.option(
    "--target-bits", type=float, metavar="X", help="Mix 2, 3, 4 and 8 bits, so that X are used on average."
)
def command(
    model: str, output: Path, method: str, bits: str, group: int, sym: bool, act_order: bool | None,
    calibration: Path | None, tokens: int, format: str, target_bits: float | None,
) -> None:  # fmt: skip
    """Quantise MODEL: a model folder, a GGUF file or a downloaded Hugging Face id.

    The result is an ordinary checkpoint, with the tokenizer, that other programs and `rusteeze compile`
    read. Embeddings, head, norms and routers are not quantised. A run that was killed goes on where it was
    when the same command is given again."""
    options = load_extra("rusteeze.quantize.options", "quantising").QuantizeOptions(
        method=method, format=format, bits=int(bits), group=group, symmetric=sym, act_order=act_order,
        target_bits=target_bits, tokens=tokens,
    )  # fmt: skip
    quantize_model: Callable[..., dict[str, Any]] = load_extra(
        "rusteeze.quantize.quantize", "quantising"
    ).quantize_model
    with progress(f"quantising {Path(model).name}") as report:
        facts = quantize_model(model, output, options, calibration, report)
    if wants_json():
        print_json(facts)
        return
    click.echo(facts["output"])
    text = f"{facts['matrices']} matrices of {facts['bits_per_weight']:.2f} bits a weight"
    click.echo(f"{text}, {bytes_text(facts['bytes'])}, {facts['seconds']:.1f} s", err=True)
