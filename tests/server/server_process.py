"""``rusteeze serve`` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXIT_SECONDS = 40


@dataclass
class Served:
    """A server process, and what it announced."""

    process: subprocess.Popen[str]
    url: str
    model: str
    phases: dict[str, float]

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return str(answer.read().decode())

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)


@contextmanager
def serve(
    artifact: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Start a server on a free port and stop it at the end, if it still runs."""
    command = [
        sys.executable, "-m", "rusteeze", "--json", "serve", str(artifact), "--port", "0",
        "--memory", "1GiB", *options,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while not said.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, f"the server ended with {process.wait()}"
                said += line
            facts = json.loads(said)
            yield Served(process, facts["url"], facts["model"], facts["startup_seconds"])
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(EXIT_SECONDS)
