"""Compiling without room, without an end, and twice at once: real processes on a tiny model."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from outcomes import check_refusal, python_rusteeze, rusteeze

from rusteeze.artifact import cache
from rusteeze.artifact.store import verify

pytestmark = pytest.mark.slow

PATIENCE = 120.0
"""Seconds, on a machine however busy."""


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    command = python_rusteeze(*arguments)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; its size is changed by mounting it again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount(disk, "size=64k"):
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def mount(disk: Path, options: str) -> int:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    try:
        return subprocess.run(command, capture_output=True).returncode
    except FileNotFoundError:
        return -1


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_full_disk(jobs: str, sound_folder: Path, sound_artifact: Path, small_disk: Path) -> None:
    """Too small for one file more than before, then large enough."""
    needed = sum(p.stat().st_size for p in sound_artifact.rglob("*"))
    for share in (0.02, 0.4, 0.8):
        mount(small_disk, f"remount,size={int(share * needed)}")
        result = rusteeze("compile", sound_folder, "-o", small_disk / "m.rz", "--jobs", jobs)
        message = check_refusal(result.exit_code, result.stderr)
        assert "disk full" in message or "No space left on device" in message
        assert list(small_disk.iterdir()) == []
    mount(small_disk, f"remount,size={2 * needed}")
    result = rusteeze("compile", sound_folder, "-o", small_disk / "m.rz", "--jobs", jobs)
    assert result.exit_code == 0, result.output
    verify(small_disk / "m.rz", full=True)


def test_a_limit_on_the_size_of_files(sound_folder: Path, sound_artifact: Path, out: Path) -> None:
    most = (sound_artifact / "weights.safetensors").stat().st_size - 1
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    process = start("compile", sound_folder, "-o", out, preexec_fn=limit)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert "larger than" in check_refusal(process.returncode, stderr)
    assert list(out.parent.iterdir()) == []


def test_killed_then_compiled_again(sound_folder: Path) -> None:
    """Killed in the middle of its work, with helpers that outlive it for a while."""
    shelf = cache.cache_dir() / "artifacts"
    first = start("compile", sound_folder, "--jobs", "2")
    wait_for(shelf, "*draft*/weights.safetensors", first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert cache.entries() == []
    assert list(shelf.glob(".*draft*")), "the draft of the killed process should still lie there"
    result = rusteeze("compile", sound_folder, "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "waiting" not in result.stderr
    (entry,) = cache.entries()
    verify(entry.path, full=True)
    assert {p.name for p in shelf.iterdir()} == {entry.path.name, f".{entry.key}.lock"}


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Until a path matches, while the process lives."""
    end = time.monotonic() + PATIENCE
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_at_once_compile_once(sound_folder: Path) -> None:
    environment = {**os.environ, "RUSTEEZE_LOG_LEVEL": "info"}
    processes = [start("compile", sound_folder, env=environment) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (entry,) = cache.entries()
    assert [stdout.strip() for stdout, _ in outputs] == [str(entry.path)] * 2
    assert sum("tracing" in stderr for _, stderr in outputs) == 1
    verify(entry.path, full=True)
