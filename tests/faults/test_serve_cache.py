"""``serve`` with a cache that is broken, or on a disk that is full or may not be written to."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes import check_refusal, python_rusteeze, rusteeze

from rusteeze.artifact import cache

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds the cache."""
    place = tmp_path / "cache"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free))
    assert shutil.disk_usage(disk).free == 0


SPOIL = {"read-only": make_read_only, "full": fill}


def served(model: Path) -> str:
    """What a server of the model answers to one question."""
    return asked_twice(model)[0]


def asked_twice(model: Path, *options: str) -> tuple[str, str]:
    """What a server of the model answers to a question, and its metrics after the second time."""
    command = python_rusteeze("--json", "serve", model, "--port", "0", "--memory", "256MiB", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = ""
            while not said.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                said += line
            facts = json.loads(said)
            body = {"model": facts["model"], "prompt": [5] * 40, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            request = urllib.request.Request(
                f"{facts['url']}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            answers = []
            for _ in range(2):
                with urllib.request.urlopen(request, timeout=20) as answer:
                    answers.append(str(json.load(answer)["choices"][0]["text"]))
            assert answers[0] == answers[1]
            with urllib.request.urlopen(f"{facts['url']}/metrics", timeout=20) as answer:
                return answers[0], answer.read().decode()
        finally:
            process.terminate()
            process.communicate(timeout=40)


@pytest.mark.parametrize("how", SPOIL)
def test_what_is_cached_is_served(how: str, sound_folder: Path, disk: Path) -> None:
    result = rusteeze("compile", sound_folder, "--jobs", "1")
    assert result.exit_code == 0, result.output
    before = served(sound_folder)
    (entry,) = cache.entries()
    SPOIL[how](disk)
    assert served(sound_folder) == before
    assert [e.key for e in cache.entries()] == [entry.key]


def test_a_cache_that_may_not_be_written_to_is_passed_by(sound_folder: Path, disk: Path) -> None:
    make_read_only(disk)
    assert len(served(sound_folder)) > 0
    assert list(disk.iterdir()) == []


def test_a_full_cache_is_refused_in_one_line(sound_folder: Path, disk: Path) -> None:
    fill(disk)
    done = subprocess.run(
        python_rusteeze("serve", sound_folder, "--port", "0"), capture_output=True, text=True
    )
    message = check_refusal(done.returncode, done.stderr)
    assert "No space left" in message or "disk full" in message


def test_a_broken_entry_is_compiled_again_and_counted(sound_folder: Path) -> None:
    answer, metrics = asked_twice(sound_folder)
    assert 'rusteeze_artifact_cache_requests_total{outcome="miss"} 1.0' in metrics
    assert "rusteeze_inference_prefix_cache_hit_tokens_total 32.0" in metrics
    (entry,) = cache.entries()
    (entry.path / "plan.json").write_bytes(b"{}")
    again, metrics = asked_twice(sound_folder, "--no-prefix-caching")
    assert again == answer
    assert 'rusteeze_artifact_cache_requests_total{outcome="quarantined"} 1.0' in metrics
    assert "rusteeze_inference_prefix_cache_hit_tokens_total 0.0" in metrics
