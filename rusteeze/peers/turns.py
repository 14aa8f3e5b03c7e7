"""Engines take turns: a machine that changes its mood changes it for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rusteeze.peers.watch import Measured

MAX_FOREIGN = 0.05
EXTRA_REPEATS = 6
PAUSE_S = 0.5

Work = Callable[[int], Measured]
Found = dict[str, list[Measured]]


@dataclass(frozen=True)
class Effort:
    """How often a work is repeated. ``warm_up``: the first round does not count. Nobody begins another
    repeat after ``limit_s`` of its own, but everybody has one."""

    repeats: int
    warm_up: bool = True
    limit_s: float = float("inf")


def in_turns(works: Mapping[str, Work], effort: Effort) -> Found:
    """By name, ``repeats`` values of each work: of those that were taken, the ones with the least
    foreign load."""
    found: Found = {name: [] for name in works}
    spent = dict.fromkeys(works, 0.0)
    for seed in range(effort.warm_up + effort.repeats + EXTRA_REPEATS):
        active = [n for n in works if not (found[n] and spent[n] > effort.limit_s)]
        if not active or all(_clean(found[n]) >= effort.repeats for n in active):
            break
        for name in active:
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            measured = works[name](seed)
            spent[name] += time.perf_counter() - start
            if seed or not effort.warm_up:
                found[name].append(measured)
    return {n: sorted(f, key=lambda m: m.foreign)[: effort.repeats] for n, f in found.items()}


def _clean(values: list[Measured]) -> int:
    return sum(m.foreign <= MAX_FOREIGN for m in values)
