"""``rusteeze benchmark``: rates, latencies and memory of a model on this machine."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import click
import numpy as np

import rusteeze.source
from rusteeze import env
from rusteeze.artifact.cuda_contract import WEIGHTS_FILE
from rusteeze.cli import peer_table
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.compile_options import kv_dtype_option
from rusteeze.cli.devices import artifact_on, device_option
from rusteeze.cli.machine_load import MachineLoad, warning
from rusteeze.cli.output import bytes_text, print_json, print_table
from rusteeze.cli.peer_table import compared, engines
from rusteeze.errors import UserError
from rusteeze.runtime import llm
from rusteeze.runtime.backend import available_cores
from rusteeze.runtime.benchmark import Load, Run, repeated
from rusteeze.runtime.llm import LLM

DECODE_PROMPT = 32
PERCENTILES = (50, 90, 99)
KIB = 1024
WIDTH = 120
COLUMNS = ("what", "tok/s", "first token ms", "between tokens ms", "runs")


@click.command(cls=Command)
@click.argument("model")
@click.option(
    "--batch", type=click.IntRange(min=1), multiple=True, default=(1, 8, 32), metavar="N",
    help="Sequences that decode together; may be given several times.",
)  # fmt: skip
@click.option(
    "--prefill", type=click.IntRange(min=1), multiple=True, default=(512, 2048), metavar="L",
    help="Tokens of a prompt; may be given several times.",
)  # fmt: skip
@click.option("--new-tokens", type=click.IntRange(min=2), default=64, help="Tokens of each answer.")
@click.option(
    "--budget", type=click.FloatRange(min=0), default=30.0, metavar="SECONDS",
    help="About how long to measure.",
)  # fmt: skip
@click.option(
    "--peer", "peers", multiple=True, metavar="PYTHON",
    help="Compare with the engines of this interpreter (llama-cpp-python, openvino-genai, vllm) that read MODEL, "
    "in turns; may be given several times.",
)  # fmt: skip
@device_option
@kv_dtype_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
def command(
    model: str, batch: tuple[int, ...], prefill: tuple[int, ...], new_tokens: int, budget: float,
    peers: tuple[str, ...], device: str, kv_dtype: str, threads: int | None,
) -> None:  # fmt: skip
    """Measure decoding and prompt processing of MODEL: an artifact, or a model that is compiled when it
    has to be.

    Prompts are drawn, greedy, end tokens ignored. With --peer, prompts of decoding have 32 tokens and answers
    128, prefixes are not reused, and the budget is that of each engine."""
    artifact, count = artifact_on(model, device, kv_dtype), threads or env.THREADS.get()
    if peers:
        _compare(model, artifact, peers, count or available_cores(), batch, prefill, budget)
        return
    loaded = llm.load(artifact, count, device=device)
    try:
        loads = [Load(n, DECODE_PROMPT, new_tokens) for n in batch] + [Load(1, n, 1) for n in prefill]
        _check_lengths(loads, loaded.executor.max_model_len)
        vocab_size, machine = loaded.executor.vocab_size, MachineLoad()
        rows = [_facts(*found) for found in repeated(loaded.engine, loads, vocab_size, budget)]
        memory, foreign = _memory(loaded), machine.foreign()
    finally:
        loaded.close()
    if wants_json():
        print_json({"measured": rows, "memory": memory, "foreign": foreign})
        return
    print_table("", COLUMNS, [_row(facts) for facts in rows], WIDTH)
    click.echo("\nmemory: " + ", ".join(f"{what} {bytes_text(n)}" for what, n in memory.items()))
    if warning(foreign):
        click.echo(warning(foreign), err=True)


def _compare(
    model: str, artifact: Path, peers: tuple[str, ...], threads: int, batch: tuple[int, ...],
    prefill: tuple[int, ...], budget: float,
) -> None:  # fmt: skip
    found = engines(rusteeze.source.resolve(model), artifact, peers, threads)
    try:
        rows = list(compared(found, batch, prefill, budget))
    finally:
        for engine in found:
            engine.stop()
    if wants_json():
        print_json({"compared": rows, "threads": threads})
        return
    print_table("", peer_table.COLUMNS, [peer_table.row(facts) for facts in rows], WIDTH)


def _check_lengths(loads: list[Load], longest: int) -> None:
    for load in loads:
        length = load.prompt_tokens + load.new_tokens
        if length > longest:
            raise UserError(f"{length} tokens are more than the model's {longest}")


def _facts(load: Load, runs: list[Run]) -> dict[str, Any]:
    """``tokens_per_s``: the median over the runs; of decoding after everybody's first token, of a prompt
    up to its first new one."""
    decodes = load.new_tokens > 1
    what = f"decode {load.sequences}" if decodes else f"prefill {load.prompt_tokens}"
    facts: dict[str, Any] = {"what": what, "runs": len(runs)}
    if not runs:
        return facts
    rates = [r.tail_tokens / r.tail if decodes else load.prompt_tokens / r.seconds for r in runs]
    facts["tokens_per_s"] = float(np.median(rates))
    facts["first_token_ms"] = _percentiles([s for r in runs for s in r.first])
    gaps = [s for r in runs for s in r.gaps]
    return facts | ({"between_tokens_ms": _percentiles(gaps)} if gaps else {})


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, PERCENTILES) * 1e3
    return {f"p{p}": float(v) for p, v in zip(PERCENTILES, values, strict=True)}


def _row(facts: dict[str, Any]) -> tuple[object, ...]:
    if not facts["runs"]:
        return (facts["what"], "no time left: raise --budget", "", "", 0)
    latencies = [_latency(facts.get(key)) for key in ("first_token_ms", "between_tokens_ms")]
    return (facts["what"], f"{facts['tokens_per_s']:.1f}", *latencies, facts["runs"])


def _latency(percentiles: dict[str, float] | None) -> str:
    """``p50 3.1, p90 3.4, p99 5.2``."""
    return ", ".join(f"{name} {ms:.1f}" for name, ms in (percentiles or {}).items())


def _memory(loaded: LLM) -> dict[str, int]:
    on_device = loaded.executor.device_bytes
    name = "weights.safetensors" if on_device is None else WEIGHTS_FILE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    found = {"peak RSS": peak, "weights": loaded.manifest.files[name].bytes}
    return found if on_device is None else found | {f"taken on {loaded.device}": on_device}
