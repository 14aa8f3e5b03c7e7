"""``rusteeze profile``: where the time of a step goes, and how near to the machine's limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rusteeze import env
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.devices import artifact_on, device_option
from rusteeze.cli.kernel_groups import Group, grouped
from rusteeze.cli.machine_load import MachineLoad, warning
from rusteeze.cli.output import print_json, print_table
from rusteeze.cli.trace_file import trace_events
from rusteeze.errors import UserError
from rusteeze.runtime import llm
from rusteeze.runtime.backend import DeviceExecutor
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.ceilings import Ceilings
from rusteeze.runtime.profile import Profile, decode_batches, fits, prefill_batches, take_profile

DEFAULT_CONTEXT = 128
COLUMNS = (
    "kernel", "calls", "share %", "µs", "waiting %", "MB", "GB/s", "MFLOP", "GFLOP/s", "bound by", "of limit %"
)  # fmt: skip
WIDTH = 170
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("model")
@click.option("--batch", type=click.IntRange(min=1), default=1, metavar="N", help="Sequences that decode.")
@click.option(
    "--context", type=click.IntRange(min=1), default=DEFAULT_CONTEXT, metavar="L",
    help="Tokens of each in the cache.",
)  # fmt: skip
@click.option(
    "--prefill", type=click.IntRange(min=1), metavar="L",
    help="Profile the processing of a prompt of L tokens instead.",
)  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0), default=2.0, help="How long to measure.")
@click.option("--trace", type=FILE, metavar="FILE.json", help="Write a trace that Perfetto opens.")
@click.option("--roofline", type=FILE, metavar="FILE.png", help="Write a picture (matplotlib).")
@device_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
def command(
    model: str, batch: int, context: int, prefill: int | None, seconds: float, trace: Path | None,
    roofline: Path | None, device: str, threads: int | None,
) -> None:  # fmt: skip
    """Time every kernel call of a step of MODEL: an artifact, or a model that is compiled when it has to be."""
    artifact = artifact_on(model, device)
    # a missing package is told before any measuring
    draw = _roofline_drawer() if roofline else None
    loaded = llm.load(artifact, threads or env.THREADS.get(), device=device)
    executor = loaded.executor
    try:
        _check_room(executor, batch, prefill or context)
        batches = _batches(executor, batch, context, prefill)
        load = MachineLoad()
        profile = take_profile(executor, batches, seconds)
        foreign = load.foreign()
        ceilings = executor.ceilings()
    finally:
        loaded.close()
    groups = grouped(profile, ceilings)
    if trace:
        trace.write_text(json.dumps(trace_events(profile)), encoding="utf-8")
    if roofline and draw:
        draw(roofline, groups, ceilings)
    if wants_json():
        print_json(_facts(profile, ceilings, groups) | {"foreign": foreign})
    else:
        _print(profile, ceilings, groups)
        if warning(foreign):
            click.echo(warning(foreign), err=True)


def _batches(
    executor: DeviceExecutor, batch: int, context: int, prefill: int | None
) -> list[Batch]:  # fmt: skip
    if prefill:
        return prefill_batches(executor, prefill)
    return decode_batches(executor, batch, context)


def _check_room(executor: DeviceExecutor, sequences: int, length: int) -> None:
    if length > executor.max_model_len:
        raise UserError(f"{length} tokens are more than the model's {executor.max_model_len}")
    if sequences > min(executor.max_sequences, executor.max_batched_tokens):
        raise UserError(f"{sequences} sequences are more than a step takes")
    if not fits(executor, sequences, length):
        room = executor.num_blocks * executor.block_size
        raise UserError(f"{sequences} sequences of {length} tokens do not fit into a cache of {room}")


def _roofline_drawer() -> Any:
    try:
        from rusteeze.cli.roofline import draw
    except ModuleNotFoundError as error:
        raise UserError(f"--roofline needs {error.name}; run: pip install 'rusteeze[plot]'") from error
    return draw


def _print(profile: Profile, ceilings: Ceilings, groups: list[Group]) -> None:
    rows = [
        (
            g.kernel, g.calls, f"{100 * g.share:.1f}", f"{g.ns / 1e3:.1f}", f"{100 * g.waiting:.0f}",
            f"{g.bytes / 1e6:.2f}", f"{g.bytes_per_s / 1e9:.1f}", f"{g.flops / 1e6:.2f}",
            f"{g.flops_per_s / 1e9:.1f}", g.bound, f"{100 * g.of_limit:.0f}",
        )
        for g in groups
    ]  # fmt: skip
    print_table(_title(profile), COLUMNS, rows, WIDTH)
    peaks = ", ".join(f"{kind} {peak / 1e9:.0f}" for kind, peak in ceilings.arithmetic.items())
    arithmetic = f"GFLOP/s: {peaks}" if peaks else "no arithmetic, so a limit here is memory's"
    click.echo(
        f"\nlimits measured just now: {ceilings.moving} {ceilings.read / 1e9:.1f} GB/s; {arithmetic}"
    )


def _title(profile: Profile) -> str:
    tokens = "1 token" if profile.tokens == 1 else f"{profile.tokens} tokens"
    return (
        f"{tokens}, {profile.where}: {profile.timed_ns / 1e3:.0f} µs with time stamps,"
        f" {profile.ordinary_ns / 1e3:.0f} µs without"
    )


def _facts(profile: Profile, ceilings: Ceilings, groups: list[Group]) -> dict[str, Any]:
    return {
        "tokens": profile.tokens,
        "threads": profile.threads,
        "where": profile.where,
        "timed_us": profile.timed_ns / 1e3,
        "ordinary_us": profile.ordinary_ns / 1e3,
        "read_gb_per_s": ceilings.read / 1e9,
        "moving": ceilings.moving,
        "gflop_per_s": {kind: peak / 1e9 for kind, peak in ceilings.arithmetic.items()},
        "kernels": [g.facts() for g in groups],
        "calls": [
            {
                "kernel": c.kernel, "origin": c.origin, "busy_us": c.busy_ns / 1e3,
                "wait_us": c.wait_ns / 1e3, "flops": c.flops, "bytes": c.bytes,
            }
            for c in profile.calls
        ],
    }  # fmt: skip
