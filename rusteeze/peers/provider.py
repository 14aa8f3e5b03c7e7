"""The engines that are measured: a process that answers (answering.py), and one that starts afresh."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rusteeze.env import child_environment
from rusteeze.errors import UserError
from rusteeze.peers.watch import finished_seconds, process_seconds

KIB_PER_MIB = 1024


class EngineEnded(UserError):
    """An engine's process came to an end of its own; what it said is on stderr."""


@dataclass(frozen=True)
class Run:
    """One process from start to end: seconds to its first output, and its largest resident set."""

    first_output_s: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Answer:
    """Seconds for all tokens, and how many came, in which time, after every sequence had its first."""

    seconds: float
    tail_tokens: int
    tail_seconds: float


@dataclass
class Provider:
    """How to start an engine: ``script`` answers prompts, ``complete`` completes a text by itself.

    ``complete`` ends before the text and the number of new tokens, which are added. ``weights`` is what
    the row says of them; ``slow_start`` means that a fresh start is measured once, without warm-up.
    """

    name: str
    weights: str
    script: list[str]
    complete: list[str]
    length_option: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    slow_start: bool = False
    process: subprocess.Popen[str] | None = None

    def generate(self, prompts: list[list[int]], new: int) -> Answer:
        """Generate ``new`` tokens for each prompt, in a process that stays loaded."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=self._environ(),
            )  # fmt: skip
        asked, answers = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answers is not None
        print(json.dumps({"prompts": prompts, "new": new}), file=asked, flush=True)
        line = answers.readline()
        if not line:
            raise EngineEnded(f"{self.name} ended: {' '.join(self.script)}")
        return Answer(**json.loads(line))

    def used_seconds(self) -> float:
        """Processor time of the loaded process and of all fresh ones that have ended."""
        return finished_seconds() + (process_seconds(self.process.pid) if self.process else 0.0)

    def start_afresh(self, text: str, new: int) -> Run:
        """A new process completes ``text`` by at most ``new`` tokens."""
        command = [*self.complete, text, *self.length_option, str(new)]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self._environ()
        )
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise EngineEnded(f"{self.name} failed: {' '.join(command)}")
        return Run(seconds, usage.ru_maxrss / KIB_PER_MIB)

    def _environ(self) -> dict[str, str]:
        return child_environment(self.environment)

    def stop(self) -> None:
        if self.process is not None:
            self.process.communicate()
            self.process = None


