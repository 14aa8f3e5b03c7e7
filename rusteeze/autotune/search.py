"""The search for one kernel's schedule: change one thing at a time, keep what wins its race.

In the end the winner races the fallback once more, with fresh times, since the best of many candidates
looks better than it is. Unless it wins that too, the kernel keeps the fallback. A change is raced with the
numbers of rows for which it matters; with others the same loops run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rusteeze.autotune.race import Pairs, Time, race, wins
from rusteeze.codegen.cpu.candidates import Change
from rusteeze.codegen.cpu.schedule import Schedule

log = logging.getLogger(__name__)

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
        # an earlier search's winner may differ anywhere
        touched = set(self.rows) if best != self.fallback else set()
        for change in self.changes:
            if self.clock() >= self.deadline:
                finished = False
                break
            candidate = change.apply(best)
            if candidate in tried:
                continue
            tried.add(candidate)
            rows = [n for n in self.rows if change.rows is None or n in change.rows]
            if rows and self._is_better(candidate, best, rows):
                best = candidate
                touched.update(rows)
        if best != self.fallback:
            pairs = race(self._time(self.fallback), self._time(best), sorted(touched))
            if wins(pairs):
                return Found(best, pairs, len(tried) - 1, finished)
        return Found(self.fallback, [], len(tried) - 1, finished)

    def _is_better(self, candidate: Schedule, best: Schedule, rows: Sequence[int]) -> bool:
        pairs = race(self._time(best), self._time(candidate), rows)
        log.debug("%s: %s", candidate, ", ".join(f"{p.rows} rows {p.ratio:.3f}" for p in pairs))
        return wins(pairs)

    def _time(self, schedule: Schedule) -> Time:
        if schedule not in self._built:
            self._built[schedule] = self.timed(schedule)
        return self._built[schedule]
