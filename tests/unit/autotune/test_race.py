"""Races and searches on a clock that is made up: what wins, what does not, and when to stop."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from rusteeze.autotune.race import ENOUGH, FEWEST, MOST, Pairs, Time, race, skipped, wins
from rusteeze.autotune.search import Found, Search
from rusteeze.codegen.cpu.candidates import Change, changes
from rusteeze.codegen.cpu.isa import V4
from rusteeze.codegen.cpu.schedule import MatmulKey, Schedule, fallback

ROWS = (1, 8, 512)
USUAL = fallback(V4, "q8")


def steady(seconds: float, noise: float = 0.0, seed: int = 0) -> Time:
    rng = random.Random(seed)
    return lambda rows: seconds * rows * (1 + noise * rng.random())


def test_a_faster_side_wins_early() -> None:
    found = race(steady(1.0, 0.05, 1), steady(0.8, 0.05, 2), ROWS)
    assert wins(found)
    assert [len(p.ratios) for p in found] == [ENOUGH] * 3
    assert found[0].ratio == pytest.approx(0.8, abs=0.05)


def test_a_slower_side_is_given_up_early() -> None:
    found = race(steady(1.0, 0.05, 1), steady(1.2, 0.05, 2), ROWS)
    assert not wins(found)
    assert [len(p.ratios) for p in found] == [FEWEST] * 3


def test_noise_alone_does_not_win() -> None:
    """Of 300 races between equals, hardly one may be won."""
    won = sum(wins(race(steady(1, 0.2, n), steady(1, 0.2, -n - 1), (1,))) for n in range(300))
    assert won <= 20


def test_faster_here_and_slower_there_does_not_win() -> None:
    def mixed(rows: int) -> float:
        return rows * (1.04 if rows == 512 else 0.5)

    assert not wins(race(steady(1.0), mixed, ROWS))


def test_a_gain_within_the_margin_does_not_win() -> None:
    found = race(steady(1.0), steady(0.999), ROWS)
    assert not wins(found)
    assert len(found[0].ratios) == MOST


def test_the_interval_holds_the_median() -> None:
    assert [skipped(n) for n in (1, 5, 6, 9, 15)] == [0, 0, 0, 1, 3]
    pairs = Pairs(1, [1.0] * 9, [9.0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert (pairs.interval(), pairs.ratio) == ((2, 8), 5)


@dataclass
class Machine:
    """Where what a schedule costs is a formula, and time passes as it is used."""

    now: float = 0.0
    built: list[Schedule] = field(default_factory=list)

    def timed(self, schedule: Schedule) -> Time:
        self.built.append(schedule)
        self.now += 0.2
        cost = 1.0
        cost *= 0.9 if schedule.prefetch_bytes_one_row == 0 else 1.0
        cost *= 0.8 if schedule.row_tiles == (8, 4, 1) else 1.0
        cost *= 1.5 if schedule.accumulators > 1 else 1.0

        def seconds(rows: int) -> float:
            self.now += 0.01
            return cost

        return seconds

    def search(self, seconds: float, first: Schedule | None = None) -> Found:
        key = MatmulKey("affine4g32m-f16", "q8", 576, 4096, "store")
        deadline = self.now + seconds
        steps = tuple(changes(key, V4))
        return Search(USUAL, steps, ROWS, self.timed, deadline, lambda: self.now).run(first)


BEST = replace(USUAL, prefetch_bytes_one_row=0, row_tiles=(8, 4, 1))


def test_the_search_finds_what_is_best() -> None:
    machine = Machine()
    found = machine.search(1e6)
    assert (found.schedule, found.finished) == (BEST, True)
    assert [p.rows for p in found.pairs] == list(ROWS)
    assert all(p.ratio == pytest.approx(0.72) for p in found.pairs)
    assert len(machine.built) == len(set(machine.built)) == found.tried + 1


def test_a_search_that_is_cut_short_says_so_and_goes_on_from_there() -> None:
    machine = Machine()
    found = machine.search(6.0)
    assert not found.finished
    assert found.schedule == replace(USUAL, prefetch_bytes_one_row=0)
    again = machine.search(1e6, first=found.schedule)
    assert (again.schedule, again.finished) == (BEST, True)


def test_without_time_the_fallback_stays() -> None:
    found = Machine().search(0.0)
    assert (found.schedule, found.pairs, found.tried, found.finished) == (USUAL, [], 0, False)


def test_a_winner_that_loses_its_last_race_is_dropped() -> None:
    """What won by luck: fast while candidates race each other, slow when it races the fallback again."""
    calls: dict[Schedule, int] = {}

    def timed(schedule: Schedule) -> Time:
        def seconds(rows: int) -> float:
            calls[schedule] = calls.get(schedule, 0) + 1
            lucky = schedule != USUAL and calls[schedule] <= ENOUGH * len(ROWS)
            return 0.5 if lucky else 1.0

        return seconds

    change = Change({"pass_bytes": 1 << 20})
    found = Search(USUAL, [change], ROWS, timed, float("inf")).run()
    assert calls[change.apply(USUAL)] > ENOUGH * len(ROWS)
    assert (found.schedule, found.pairs) == (USUAL, [])
