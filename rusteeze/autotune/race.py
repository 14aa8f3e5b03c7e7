"""Two ways of doing the same, timed in turns: is the second one faster beyond the noise?

Pairs that run right after each other share what else happens on the machine, so their ratio is steadier
than either time. The median of the ratios counts, with an interval from order statistics (sign test).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median

FEWEST, ENOUGH, MOST = 6, 9, 15
DOUBT = 0.05
# better by less than this is not worth a schedule of its own
MARGIN = 0.005
# a median of ratios lies this much above 1 now and then where nothing changed
TOLERANCE = 0.02

Time = Callable[[int], float]
"""number of rows → seconds of one run"""


@dataclass
class Pairs:
    """Times of both sides with one number of rows."""

    rows: int
    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.old, self.new, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    def interval(self) -> tuple[float, float]:
        """Where the median of all possible ratios lies, but for DOUBT."""
        ratios = sorted(self.ratios)
        skip = skipped(len(ratios))
        return ratios[skip], ratios[-1 - skip]


def skipped(count: int) -> int:
    """How many of the smallest and of the largest values lie outside the interval."""
    skip, tail = 0, 2.0 * 0.5**count
    while skip + 1 <= (count - 1) // 2:
        tail += 2.0 * math.comb(count, skip + 1) * 0.5**count
        if tail > DOUBT:
            break
        skip += 1
    return skip


def race(old: Time, new: Time, rows: Sequence[int]) -> list[Pairs]:
    """Time both in turns until the matter is clear, or MOST times."""
    found = [Pairs(n) for n in rows]
    for number in range(MOST):
        for pairs in found:
            sides = [(old, pairs.old), (new, pairs.new)]
            for time, times in sides if number % 2 else reversed(sides):
                times.append(time(pairs.rows))
        done = number + 1
        if (done >= FEWEST and hopeless(found)) or (done >= ENOUGH and wins(found)):
            break
    return found


def wins(found: Sequence[Pairs]) -> bool:
    """Somewhere faster and nowhere slower beyond the noise, and faster on the whole."""
    nowhere_slower = all(p.interval()[0] <= 1 and p.ratio <= 1 + TOLERANCE for p in found)
    somewhere_faster = any(p.interval()[1] < 1 - MARGIN for p in found)
    return nowhere_slower and somewhere_faster and score(found) < 1 - MARGIN


def hopeless(found: Sequence[Pairs]) -> bool:
    """Slower on the whole, or surely slower somewhere."""
    return score(found) >= 1 or any(p.interval()[0] > 1 + TOLERANCE for p in found)


def score(found: Sequence[Pairs]) -> float:
    """Below 1: the new side is faster on the whole."""
    return geometric_mean([p.ratio for p in found])
