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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import machine
import provider
import table
from machine import Measured, build_reader, finished_seconds, read_rate, watched
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


Found = dict[str, list[Measured]]


@dataclass(frozen=True)
class Measurement:
    """What is measured, its unit, and how: the value for an engine in repeat number ``seed``."""

    what: str
    metric: str
    value: Callable[[Provider, int], float]


def prompts(sequences: int, length: int, seed: int) -> list[list[int]]:
    """Drawn token ids; every repeat has its own, so that no engine has seen them before."""
    draw = random.Random(f"{sequences} {length} {seed}")
    return [[draw.choice(TOKEN_IDS) for _ in range(length)] for _ in range(sequences)]


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


def in_turns(works: Mapping[str, Callable[[int], Measured]], repeats: int) -> Found:
    """By name, ``repeats`` values of each work, which take turns; the first round warms up."""
    found: Found = {name: [] for name in works}
    for seed in range(1 + repeats + EXTRA_REPEATS):
        for name, work in works.items():
            time.sleep(PAUSE_S)
            measured = work(seed)
            if seed:
                found[name].append(measured)
        if all(sum(m.foreign <= MAX_FOREIGN for m in f) >= repeats for f in found.values()):
            break
    return {name: sorted(f, key=lambda m: m.foreign)[:repeats] for name, f in found.items()}


def compile_seconds(model: Path, cache: Path) -> float:
    """Seconds of the whole process that compiles into an empty cache."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "rusteeze", "compile", str(model)]
    environment = {**os.environ, "RUSTEEZE_CACHE": str(cache)}
    subprocess.run(command, env=environment, capture_output=True, check=True)
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
    with tempfile.TemporaryDirectory() as folder:
        for what, metric, found in measure(asked, Path(folder)):
            rows = [table.row(facts, what, name, metric, v) for name, v in found.items()]
            print(*map(table.line, rows), sep="\n", flush=True)
            if asked.append:
                table.append(RESULTS, rows)


def measure(asked: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Found]]:
    """Everything that was asked for: what, in which unit, and the values by whose they are."""

    def alone(name: str, value: Callable[[int], float]) -> Found:
        return in_turns(
            {name: lambda n: watched(lambda: value(n), finished_seconds)}, asked.repeats
        )

    if "read" in asked.parts:
        program = build_reader(folder)
        yield "read memory", "GB/s", alone("machine", lambda _: read_rate(program, asked.threads))
    if "compile" in asked.parts:
        caches = (folder / f"cache-{n}" for n in count(1))
        fresh = alone("rusteeze", lambda _: compile_seconds(asked.model, next(caches)))
        yield "compile", "s", fresh
    engines = list(start_engines(asked, folder / "cache"))
    for measurement in measurements(asked.parts):
        works = {e.name: partial(watch_engine, e, partial(measurement.value, e)) for e in engines}
        yield measurement.what, measurement.metric, in_turns(works, asked.repeats)
    for engine in engines:
        engine.stop()


def start_engines(asked: argparse.Namespace, cache: Path) -> Iterator[Provider]:
    """The engines to compare, ours compiled."""
    if not set(asked.parts) - {"read", "compile"}:
        return
    compile_seconds(asked.model, cache)
    yield provider.ours(asked.model, cache, asked.threads)
    if asked.llamacpp:
        yield provider.llamacpp(asked.llamacpp, asked.model, asked.threads)


def watch_engine(engine: Provider, value: Callable[[int], float], seed: int) -> Measured:
    return watched(partial(value, seed), engine.used_seconds)


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
