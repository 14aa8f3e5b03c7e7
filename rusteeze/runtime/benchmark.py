"""How fast an engine serves: rates and latencies of drawn prompts, greedy, end tokens ignored.

    found = measure(engine, Load(sequences=8, prompt_tokens=32, new_tokens=64), vocab_size, seed=0)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.params import SamplingParams

Clock = Callable[[], float]


@dataclass(frozen=True)
class Load:
    """So many requests that arrive together."""

    sequences: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Run:
    """What one run of a load took, in seconds.

    ``first``: from arrival to the first token, one a request; ``gaps``: between tokens of a request.
    ``tail_tokens`` came within ``tail`` after every request had its first one."""

    seconds: float
    first: list[float]
    gaps: list[float]
    tail_tokens: int
    tail: float


def measure(
    engine: SyncEngine, load: Load, vocab_size: int, seed: int, clock: Clock = time.perf_counter
) -> Run:
    """Run a load once. The engine must be idle. RequestError when a request can never be served,
    RuntimeError when one failed."""
    draw = random.Random(f"{load} {seed}")
    params = SamplingParams(temperature=0, max_tokens=load.new_tokens, ignore_eos=True)
    prompts = [
        [draw.randrange(vocab_size) for _ in range(load.prompt_tokens)] for _ in range(load.sequences)
    ]
    start = clock()
    times: dict[str, list[float]] = {engine.submit(p, params): [] for p in prompts}
    while engine.has_work:
        outputs = engine.step()
        now = clock()
        for output in outputs:
            times[output.request_id] += [now] * len(output.token_ids)
    if any(len(t) != load.new_tokens for t in times.values()):
        raise RuntimeError("a request ended early; the log says why")
    return _run(start, list(times.values()))


def _run(start: float, times: Sequence[Sequence[float]]) -> Run:
    all_begun = max(t[0] for t in times)
    end = max(t[-1] for t in times)
    return Run(
        end - start,
        [t[0] - start for t in times],
        [b - a for t in times for a, b in pairwise(t)],
        sum(moment > all_begun for t in times for moment in t),
        end - all_begun,
    )


def repeated(
    engine: SyncEngine, loads: Sequence[Load], vocab_size: int, budget_s: float,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[Load, list[Run]]]:  # fmt: skip
    """Runs of each load, in order, within a time budget: a load gets an equal share of what is left,
    after a run that warms up. A load that its predecessors left no time for has no runs."""
    end = clock() + budget_s
    for place, load in enumerate(loads):
        share = clock() + (end - clock()) / (len(loads) - place)
        runs: list[Run] = []
        if clock() < end:
            measure(engine, load, vocab_size, 0, clock)
            while not runs or clock() + runs[-1].seconds < share:
                runs.append(measure(engine, load, vocab_size, len(runs) + 1, clock))
        yield load, runs
