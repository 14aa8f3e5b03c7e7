"""A whole run: the kernels of an artifact, largest share of the step first, within a budget.

After each kernel the user's table is written, so that a run may be killed at any moment and the next one
goes on behind the kernels that are finished.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rusteeze.artifact.contract import Call
from rusteeze.artifact.tuned import processor, user_table
from rusteeze.autotune.open_artifact import OpenArtifact
from rusteeze.autotune.race import Time
from rusteeze.autotune.search import Found, Search
from rusteeze.codegen.cpu.build import build_library, code_hash
from rusteeze.codegen.cpu.candidates import changes
from rusteeze.codegen.cpu.isa import ALL, Isa
from rusteeze.codegen.cpu.lowering import Kernel, Tunable
from rusteeze.codegen.cpu.schedule import MatmulKey, Schedule, fallback
from rusteeze.codegen.cpu.tuning_table import Entry, Measured, read_table, write_table
from rusteeze.runtime.kernel_timer import KernelTimer, Work
from rusteeze.runtime.launch import Library, choose_library

Report = Callable[[str, float], None]

ROWS = (1, 8, 32, 512)
# logits are wanted of one row a sequence
LOGITS_ROWS = (1, 8, 32)
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Task:
    """Kernels that share a schedule: how to build one, the calls that it makes, its share of a step."""

    tunable: Tunable
    calls: tuple[Call, ...]
    rows: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Result:
    """``entry``: as written to the table. ``skipped``: finished by an earlier run."""

    entry: Entry
    share: float
    tried: int
    skipped: bool = False


class Session:
    """``close`` stops the threads that measure."""

    def __init__(self, artifact: OpenArtifact, threads: int, table: Path | None = None) -> None:
        self._artifact, self._table = artifact, table or user_table()
        library = choose_library(artifact.path / "cpu", artifact.plan.libraries)
        self.isa: Isa = next(isa for isa in ALL if isa.name == library.stem)
        self._timer = KernelTimer(artifact.plan, artifact.weights, library, threads)
        self._known = {
            e.key: e
            for e in read_table(self._table).entries
            if (e.isa, e.processor) == (self.isa.name, processor())
        }

    def close(self) -> None:
        self._timer.close()

    def run(self, tasks: list[Task], budget: float, report: Report) -> list[Result]:
        """Search for every task that is not finished, in order; writes the table after each."""
        end = time.perf_counter() + budget
        left = sum(task.share for task in tasks if not self._finished(task))
        results = []
        for number, task in enumerate(tasks):
            known = self._known.get(task.tunable.key)
            if known and self._finished(task):
                results.append(Result(known, task.share, 0, skipped=True))
                continue
            now = time.perf_counter()
            if now >= end:
                break
            report(name_of(task.tunable.key), number / len(tasks))
            deadline = now + (end - now) * (task.share / left if left else 1.0)
            left -= task.share
            found = self._search(task, deadline, known.schedule if known else None)
            entry = self._entry(task.tunable.key, found)
            # read again: another run may have written meanwhile
            write_table(self._table, read_table(self._table).updated(entry))
            results.append(Result(entry, task.share, found.tried))
        return results

    def _finished(self, task: Task) -> bool:
        known = self._known.get(task.tunable.key)
        return known is not None and known.finished

    def _search(self, task: Task, deadline: float, first: Schedule | None) -> Found:
        work = self._timer.work(task.calls, max(task.rows))
        with tempfile.TemporaryDirectory(prefix="rusteeze-") as folder:

            def timed(schedule: Schedule) -> Time:
                return self._timed(task.tunable, schedule, work, Path(folder))

            def code(schedule: Schedule) -> int:
                return code_hash(_candidate(task.tunable, schedule), self.isa)

            key = task.tunable.key
            usual, steps = fallback(self.isa, key.activation, key.format), tuple(changes(key, self.isa))
            return Search(usual, steps, task.rows, timed, code, deadline).run(first)

    def _timed(self, tunable: Tunable, schedule: Schedule, work: Work, folder: Path) -> Time:
        kernel = _candidate(tunable, schedule)
        place = Path(tempfile.mkdtemp(dir=folder))
        library = Library(build_library({kernel.name: kernel}, self.isa, place))
        address = library.address(kernel.name)

        def seconds(rows: int, _library: Library = library) -> float:
            return self._timer.seconds(address, work, rows)

        return seconds

    def _entry(self, key: MatmulKey, found: Found) -> Entry:
        measured = tuple(
            Measured(
                p.rows, round(MICROSECONDS * median(p.old), 2), round(MICROSECONDS * median(p.new), 2),
                round(p.ratio, 4),
            )
            for p in found.pairs
        )  # fmt: skip
        return Entry(
            key, self.isa.name, processor(), self._timer.num_threads, found.finished, found.schedule, measured
        )  # fmt: skip


def _candidate(tunable: Tunable, schedule: Schedule) -> Kernel:
    return Kernel("candidate", lambda k, _isa: tunable.emit(k, schedule))


def tasks_of(artifact: OpenArtifact, shares: dict[str, float]) -> list[Task]:
    """What there is to tune, the largest share first. ``shares``: of a step, by the kernels' names."""
    kernels: dict[MatmulKey, list[Kernel]] = {}
    for kernel in artifact.as_compiled().kernels.values():
        if kernel.tunable:
            kernels.setdefault(kernel.tunable.key, []).append(kernel)
    tasks = [_task(artifact, same, shares) for same in kernels.values()]
    return sorted(tasks, key=lambda t: t.share, reverse=True)


def _task(artifact: OpenArtifact, same: list[Kernel], shares: dict[str, float]) -> Task:
    """The kernel that is called most often stands for those that differ in what they are read from."""
    calls = {k.name: tuple(c for c in artifact.plan.calls if c.kernel == k.name) for k in same}
    chosen = max(same, key=lambda k: len(calls[k.name]))
    assert chosen.tunable
    assert calls[chosen.name], f"the plan does not call {chosen.name}"
    logits = all(c.cost.space == "R" for c in calls[chosen.name])
    share = sum(shares.get(k.name, 0.0) for k in same)
    return Task(chosen.tunable, calls[chosen.name], LOGITS_ROWS if logits else ROWS, share)


def name_of(key: MatmulKey) -> str:
    return f"{key.label} {key.format} {key.activation} K={key.k} N={key.n}"
