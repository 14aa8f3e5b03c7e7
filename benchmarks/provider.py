"""The engines that are measured: a process that answers (answering.py), and one that starts afresh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from machine import finished_seconds, process_seconds

HERE = Path(__file__).parent
KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Run:
    """One process from start to end: seconds to its first output, and its largest resident set."""

    first_output_s: float
    peak_rss_mib: float


@dataclass
class Provider:
    """How to start an engine: ``script`` answers prompts, ``complete`` completes a text by itself.

    ``complete`` ends before the text and the number of new tokens, which are added.
    """

    name: str
    script: list[str]
    complete: list[str]
    length_option: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def generate(self, prompts: list[list[int]], new: int) -> float:
        """Seconds to generate ``new`` tokens for each prompt, in a process that stays loaded."""
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
            raise SystemExit(f"{self.name} ended: {' '.join(self.script)}")
        return float(json.loads(line)["seconds"])

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
            raise SystemExit(f"{self.name} failed: {' '.join(command)}")
        return Run(seconds, usage.ru_maxrss / KIB_PER_MIB)

    def _environ(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def stop(self) -> None:
        if self.process is not None:
            self.process.communicate()
            self.process = None


def ours(model: Path, cache: Path, threads: int) -> Provider:
    """Rusteeze as this interpreter has it, its artifact already in ``cache``.

    A fresh start is the ``generate`` command on the model file, as a person would type it."""
    count = str(threads)
    options = ["--temperature", "0", "--threads", count]
    return Provider(
        "rusteeze",
        [sys.executable, str(HERE / "ours.py"), str(model), count],
        [sys.executable, "-m", "rusteeze", "generate", str(model), *options, "-p"],
        ["--max-tokens"],
        {"RUSTEEZE_CACHE": str(cache)},
    )


def llamacpp(python: str, model: Path, threads: int) -> Provider:
    """llama.cpp as the interpreter ``python`` has it."""
    version = subprocess.run(
        [python, "-c", "import llama_cpp; print(llama_cpp.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    command = [python, str(HERE / "llamacpp.py"), str(model), str(threads)]
    return Provider(f"llama.cpp (llama-cpp-python {version})", command, command)
