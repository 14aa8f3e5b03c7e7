"""The search for one kernel's schedule: change one thing at a time, keep what wins its race.

In the end the winner races the fallback once more, with fresh times, since the best of many candidates
looks better than it is. Unless it wins that too, the kernel keeps the fallback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rusteeze.autotune.race import Pairs, Time, race, wins
from rusteeze.codegen.cpu.candidates import Change
from rusteeze.codegen.cpu.schedule import Schedule

Clock = Callable[[], float]
Timed = Callable[[Schedule], Time]
"""A schedule, built, as something that can be timed."""


@dataclass
class Found:
    """``pairs``: the fallback against ``schedule``, from the last race. ``tried``: schedules built beside
    the fallback. ``finished``: time did not run out."""

    schedule: Schedule
    pairs: list[Pairs]
    tried: int
    finished: bool


@dataclass
class Search:
    """Over the changes of one kernel, until ``deadline`` on ``clock``."""

    fallback: Schedule
    changes: Sequence[Change]
    rows: Sequence[int]
    timed: Timed
    deadline: float
    clock: Clock = time.perf_counter
    _built: dict[Schedule, Time] = field(default_factory=dict)

    def run(self, first: Schedule | None = None) -> Found:
        """From the fallback, or from what an earlier search ended with."""
        best, tried, finished = first or self.fallback, {self.fallback}, True
        for change in self.changes:
            if self.clock() >= self.deadline:
                finished = False
                break
            candidate = change.apply(best)
            if candidate in tried:
                continue
            tried.add(candidate)
            rows = [n for n in self.rows if change.rows is None or n in change.rows]
            if rows and wins(race(self._time(best), self._time(candidate), rows)):
                best = candidate
        if best != self.fallback:
            pairs = self._confirm(best)
            if wins(pairs):
                return Found(best, pairs, len(tried) - 1, finished)
        return Found(self.fallback, [], len(tried) - 1, finished)

    def _confirm(self, best: Schedule) -> list[Pairs]:
        return race(self._time(self.fallback), self._time(best), self.rows)

    def _time(self, schedule: Schedule) -> Time:
        if schedule not in self._built:
            self._built[schedule] = self.timed(schedule)
        return self._built[schedule]
