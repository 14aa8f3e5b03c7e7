"""Measures Rusteeze and, beside it, llama.cpp: same model file, same token ids, same run.

    .venv/bin/python benchmarks/run.py MODEL.gguf [--llamacpp PYTHON] [--append]

Every measurement is repeated with the engines taking turns, so that a machine that changes its mood
changes it for both. Repeats in which other processes had more than MAX_FOREIGN of the machine are done
again, a few times; the cleanest ones count. See README.md for what each number means.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import machine
import provider
import table
from machine import Measured, finished_seconds, read_bandwidth, watched
from provider import Provider

RESULTS = Path(__file__).with_name("results.csv")
MAX_FOREIGN = 0.05
EXTRA_REPEATS = 6
PAUSE_S = 0.5
PROMPT_TOKENS, NEW_TOKENS = 32, 128
SEQUENCES = (1, 8, 32)
PREFILLS = (512, 2048)
# Ids that are ordinary tokens in any vocabulary of a real model.
TOKEN_IDS = range(1000, 20000)
TEXT = (
    "The keeper of the lighthouse climbed the stairs every evening, trimmed the wick and wound the"
    " clockwork that turned the lamp. Then he"
)
PARTS = ("read", "decode", "prefill", "start", "compile")


@dataclass(frozen=True)
class Measurement:
    """What is measured, its unit, and how: the value for an engine in repeat number ``seed``."""

    what: str
    metric: str
    value: Callable[[Provider, int], float]


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Drawn token ids; every repeat has its own, so that no engine has seen them before."""
    draw = random.Random(f"{count} {length} {seed}")
    return [[draw.choice(TOKEN_IDS) for _ in range(length)] for _ in range(count)]


def decode_rate(sequences: int, engine: Provider, seed: int) -> float:
    """Tokens per second of all sequences together, the time of the prompts taken off."""
    asked = prompts(sequences, PROMPT_TOKENS, seed)
    short, long = engine.generate(asked, 1), engine.generate(asked, NEW_TOKENS)
    return sequences * (NEW_TOKENS - 1) / (long - short)


def prefill_rate(length: int, engine: Provider, seed: int) -> float:
    """Tokens of one prompt per second, up to and with its first new token."""
    return length / engine.generate(prompts(1, length, seed), 1)


def first_token(engine: Provider, _: int) -> float:
    return engine.start_afresh(TEXT, 1).first_output_s


def peak_rss(engine: Provider, _: int) -> float:
    return engine.start_afresh(TEXT, NEW_TOKENS).peak_rss_mib


def measurements(parts: Sequence[str]) -> Iterator[Measurement]:
    """What to measure of every engine."""
    for n in SEQUENCES if "decode" in parts else ():
        yield Measurement(f"decode {n}", "tok/s", partial(decode_rate, n))
    for n in PREFILLS if "prefill" in parts else ():
        yield Measurement(f"prefill {n}", "tok/s", partial(prefill_rate, n))
    if "start" in parts:
        yield Measurement("start to first token", "s", first_token)
        yield Measurement("peak RSS", "MiB", peak_rss)


def in_turns(
    engines: Sequence[Provider], measurement: Measurement, repeats: int
) -> dict[str, list[Measured]]:
    """By engine, ``repeats`` values, one of each at a time; the first round warms up."""
    found: dict[str, list[Measured]] = {engine.name: [] for engine in engines}
    for seed in range(1 + repeats + EXTRA_REPEATS):
        for engine in engines:
            time.sleep(PAUSE_S)
            measured = watched(partial(measurement.value, engine, seed), engine.used_seconds)
            if seed:
                found[engine.name].append(measured)
        if all(sum(m.foreign <= MAX_FOREIGN for m in f) >= repeats for f in found.values()):
            break
    return {name: sorted(f, key=lambda m: m.foreign)[:repeats] for name, f in found.items()}


def compile_seconds(model: Path, cache: Path) -> float:
    """Seconds of the whole process that compiles into an empty cache."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "rusteeze", "compile", str(model)]
    environment = {**os.environ, "RUSTEEZE_CACHE": str(cache)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    asked = arguments()
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(RESULTS.parents[1]),
        "cpu": machine.cpu_model(),
        "cores": machine.cores(),
        "threads": asked.threads,
        "weights": asked.model.name,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, name, metric, values in measure(asked, Path(folder)):
            rows.append(table.row(facts, what, name, metric, values))
            print(table.line(rows[-1]), flush=True)
    if asked.append:
        table.append(RESULTS, rows)


def measure(
    asked: argparse.Namespace, cache: Path
) -> Iterator[tuple[str, str, str, list[Measured]]]:
    """Everything that was asked for: what, whose, in which unit, and the values."""
    if "read" in asked.parts:
        yield "read memory", "machine", "GB/s", read_bandwidth(asked.threads, asked.repeats)
    caches = [cache / str(i) for i in range(asked.repeats if "compile" in asked.parts else 1)]
    times = [watched(partial(compile_seconds, asked.model, c), finished_seconds) for c in caches]
    if "compile" in asked.parts:
        yield "compile", "rusteeze", "s", times
    engines = [provider.ours(asked.model, caches[-1], asked.threads)]
    if asked.llamacpp:
        engines.append(provider.llamacpp(asked.llamacpp, asked.model, asked.threads))
    for measurement in measurements(asked.parts):
        for name, values in in_turns(engines, measurement, asked.repeats).items():
            yield measurement.what, name, measurement.metric, values
    for engine in engines:
        engine.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="a GGUF file, which both engines read")
    parser.add_argument(
        "--llamacpp", metavar="PYTHON", help="interpreter that has llama-cpp-python"
    )
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--append", action="store_true", help=f"add the rows to {RESULTS.name}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
