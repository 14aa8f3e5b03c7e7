"""Progress of long work on stderr: a bar where a person watches, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

Report = Callable[[str, float], None]


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Give a function that takes the name of the present phase and the share done, 0 to 1."""
    show = _bar if sys.stderr.isatty() else _lines
    with show(title) as report:
        yield report


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def report(phase: str, share: float) -> None:
            bar.update(task, description=f"{title}: {phase}", completed=share)

        yield report


@contextmanager
def _lines(title: str) -> Iterator[Report]:
    seen: set[str] = set()

    def report(phase: str, _: float) -> None:
        if phase not in seen:
            seen.add(phase)
            log.info("%s: %s", title, phase)

    yield report
