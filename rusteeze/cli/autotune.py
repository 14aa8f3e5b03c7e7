"""``rusteeze autotune``: measure which schedules suit this processor, and compile with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from rusteeze import env
from rusteeze.cli.artifacts import artifact_for
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.extras import load_extra
from rusteeze.cli.machine_load import MachineLoad, warning
from rusteeze.cli.output import print_json, print_table
from rusteeze.cli.progress import progress
from rusteeze.config import CompileOptions

KERNEL_COLUMNS = ("kernel", "share %", "tried", "rows: µs before → after", "schedule")
STEP_COLUMNS = ("step", "ms before", "ms after", "ratio")
WIDTH = 150
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType):
    """``60``, ``60s``, ``5m`` or ``1h`` as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _BUDGET.fullmatch(str(value))
        if not match:
            self.fail(f"{value!r} is no duration such as 60s or 5m", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "--budget", type=Duration(), default="60s", metavar="TIME",
    help="How long to search; another run goes on where this one ends.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
def command(model: str, budget: float, threads: int | None) -> None:
    """Search for the fastest schedules of the kernels of MODEL: an artifact, or a model that is compiled
    when it has to be.

    What is found goes into a table in the cache folder and, compiled anew, into the artifact. Kernels that
    an earlier run has finished are skipped. Results of the model stay the same, bit by bit."""
    artifact = artifact_for(model, CompileOptions())
    tune = load_extra("rusteeze.autotune.tune", "compiling").tune
    load = MachineLoad()
    with progress(f"tuning {Path(model).name}") as report:
        facts: dict[str, Any] = tune(model, artifact, budget, threads or env.THREADS.get(), report)
    foreign = load.foreign()
    if wants_json():
        print_json(facts | {"foreign": foreign})
        return
    _print(facts)
    if warning(foreign):
        click.echo(warning(foreign), err=True)


def _print(facts: dict[str, Any]) -> None:
    print_table("", KERNEL_COLUMNS, [_kernel_row(k) for k in facts["kernels"]], WIDTH)
    if facts["left"]:
        click.echo(f"\nno time left for {facts['left']} kernels: run it again to go on")
    rows = [
        (s["step"], f"{s['before_ms']:.2f}", f"{s['after_ms']:.2f}", f"{s['ratio']:.3f}")
        for s in facts["steps"]
    ]
    print_table("\nwhole steps, in turns", STEP_COLUMNS, rows, WIDTH)
    click.echo(f"\nschedules: {facts['table']}\nartifact: {facts['artifact']}")


def _kernel_row(kernel: dict[str, Any]) -> tuple[object, ...]:
    times = ", ".join(f"{m['rows']}: {m['fallback_us']:.0f} → {m['us']:.0f}" for m in kernel["measured"])
    state = "finished before" if kernel["skipped"] else str(kernel["tried"])
    return (
        kernel["name"], f"{100 * kernel['share']:.1f}", state, times,
        kernel["changed"] or "the fallback",
    )  # fmt: skip
