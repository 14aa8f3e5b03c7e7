"""The cache never serves a broken artifact, never builds twice at once and survives kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rusteeze import env
from rusteeze.artifact import cache
from rusteeze.artifact.cache import entries, entry_path, get_or_build, lookup
from rusteeze.artifact.store import verify
from rusteeze.errors import ArtifactError, UserError

Build = Callable[[Path], None]

KEY = "0123456789abcdef"
FILES = ["cpu/v3.o", "manifest.json", "plan.json", "weights.safetensors"]

# A process that builds one entry: ROOT, then the name of the step at which it says so and hangs.
CHILD = """
import sys, time
from pathlib import Path
from rusteeze.artifact import cache, store

root, point = Path(sys.argv[1]), sys.argv[2]

def build(folder):
    with (root / "builds").open("a") as file:
        file.write("x")
    (folder / "plan.json").write_text("from the child")
    time.sleep(0.2)
    if point == "build":
        hang()

def hang(*_):
    print("reached", flush=True)
    time.sleep(60)

if point not in ("build", "none"):
    setattr(store, point, hang)
print(cache.get_or_build("0123456789abcdef", build, root=root), flush=True)
"""


@pytest.fixture
def builder(build_sample: Build) -> tuple[list[int], Build]:
    """A build that counts its calls."""
    calls: list[int] = []

    def build(folder: Path) -> None:
        calls.append(1)
        build_sample(folder)

    return calls, build


def start_child(root: Path, point: str = "none") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(root), point]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def leftovers(root: Path) -> list[str]:
    names = [p.name for p in (root / "artifacts").iterdir()]
    return sorted(n for n in names if n not in (f"{KEY}.rz", f".{KEY}.lock"))


def test_second_call_reuses_the_entry(tmp_path: Path, builder: tuple[list[int], Build]) -> None:
    calls, build = builder
    path = get_or_build(KEY, build, facts={"a": 1}, root=tmp_path)
    assert get_or_build(KEY, build, root=tmp_path) == path == lookup(KEY, tmp_path)
    assert len(calls) == 1
    assert verify(path).facts == {"a": 1}
    assert leftovers(tmp_path) == []


def test_lookup_of_nothing_makes_no_folder(tmp_path: Path) -> None:
    assert lookup(KEY, tmp_path / "none") is None
    assert entries(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("key", ["", "../../etc", ".hidden", "a/b", "k" * 200, "abc\n1"])
def test_a_key_is_a_plain_word(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a cache key"):
        entry_path(key, tmp_path)


def test_cache_dir_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_sample: Build
) -> None:
    monkeypatch.setenv(env.CACHE.name, str(tmp_path / "here"))
    path = get_or_build(KEY, build_sample)
    assert path == tmp_path / "here" / "artifacts" / f"{KEY}.rz"


@pytest.mark.parametrize("name", FILES)
def test_a_corrupted_byte_means_quarantine_and_rebuild(
    name: str, tmp_path: Path, builder: tuple[list[int], Build]
) -> None:
    calls, build = builder
    path = get_or_build(KEY, build, root=tmp_path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (path / name).write_bytes(data)
    assert lookup(KEY, tmp_path) is None
    assert get_or_build(KEY, build, root=tmp_path) == path
    assert len(calls) == 2
    verify(path, full=True)
    (aside,) = leftovers(tmp_path)
    assert aside.startswith(f".quarantine-{KEY}-")
    assert (tmp_path / "artifacts" / aside / name).read_bytes() == data


def test_quarantine_keeps_only_the_latest(tmp_path: Path, builder: tuple[list[int], Build]) -> None:
    calls, build = builder
    for _ in range(4):
        (get_or_build(KEY, build, root=tmp_path) / "plan.json").write_text("garbage")
    assert len(calls) == 4
    assert len(leftovers(tmp_path)) == 1


def test_gc_removes_the_quarantine_and_keeps_the_entry(tmp_path: Path, build_sample: Build) -> None:
    (get_or_build(KEY, build_sample, root=tmp_path) / "plan.json").write_text("garbage")
    get_or_build(KEY, build_sample, root=tmp_path)
    assert cache.gc(root=tmp_path) > 0
    assert leftovers(tmp_path) == []
    assert lookup(KEY, tmp_path)


@pytest.mark.parametrize(
    "point", ["build", "sync_tree", "write_atomic", "_replace", "_rename_unless_taken"]
)
def test_kill_9_leaves_nothing_that_is_trusted(
    point: str, tmp_path: Path, builder: tuple[list[int], Build]
) -> None:
    child = start_child(tmp_path, point)
    assert child.stdout is not None
    assert child.stdout.readline() == "reached\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert lookup(KEY, tmp_path) is None
    assert leftovers(tmp_path), "the draft of the killed process should still lie there"
    calls, build = builder
    verify(get_or_build(KEY, build, root=tmp_path))
    assert len(calls) == 1
    assert leftovers(tmp_path) == []


def test_the_draft_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    child = start_child(tmp_path, "_replace")
    assert child.stdout is not None
    assert child.stdout.readline() == "reached\n"
    cache.gc(root=tmp_path)
    held = leftovers(tmp_path)
    child.kill()
    child.communicate()
    assert len(held) == 1
    cache.gc(root=tmp_path)
    assert leftovers(tmp_path) == []


def test_two_processes_build_once(tmp_path: Path) -> None:
    children = [start_child(tmp_path) for _ in range(2)]
    outputs = [child.communicate(timeout=30)[0].strip() for child in children]
    assert outputs == [str(entry_path(KEY, tmp_path))] * 2
    assert (tmp_path / "builds").read_text() == "x"


def test_full_disk_during_a_build(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "plan.json").write_text("half")
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"w")

    with pytest.raises(ArtifactError, match=r"^disk full: "):
        get_or_build(KEY, build, root=tmp_path)
    assert leftovers(tmp_path) == []
    assert lookup(KEY, tmp_path) is None


def read_only(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Make ``root`` look read-only: modes alone would not stop a test that runs as root."""
    real = os.access

    def access(path: str | Path, mode: int) -> bool:
        inside = Path(path).is_relative_to(root)
        return False if inside and mode & os.W_OK else real(path, mode)

    monkeypatch.setattr(os, "access", access)


def test_read_only_cache_still_hits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: tuple[list[int], Build]
) -> None:
    calls, build = builder
    path = get_or_build(KEY, build, root=tmp_path)
    read_only(monkeypatch, tmp_path)
    assert get_or_build(KEY, build, root=tmp_path) == path
    assert len(calls) == 1


def test_read_only_cache_falls_back_to_a_temporary_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build_sample: Build,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = tmp_path / "root"
    (root / "artifacts").mkdir(parents=True)
    read_only(monkeypatch, root)
    path = get_or_build(KEY, build_sample, root=root)
    assert not path.is_relative_to(root)
    assert verify(path).key == KEY
    assert "kept only while this process runs" in caplog.text
    assert list((root / "artifacts").iterdir()) == []


def test_cache_below_a_file_is_bypassed(tmp_path: Path, build_sample: Build) -> None:
    (tmp_path / "root").write_text("not a folder")
    path = get_or_build(KEY, build_sample, root=tmp_path / "root")
    assert not path.is_relative_to(tmp_path)
    verify(path)


def three_entries(root: Path, build: Build) -> list[str]:
    """Entries used one after the other; the keys, the one used last first."""
    keys = ["key-one", "key-two", "key-three"]
    for age, key in enumerate(keys):
        os.utime(get_or_build(key, build, root=root), (1000 + age, 1000 + age))
    return keys[::-1]


def test_entries_are_listed_by_last_use(tmp_path: Path, build_sample: Build) -> None:
    keys = three_entries(tmp_path, build_sample)
    assert [e.key for e in entries(tmp_path)] == keys
    assert lookup("key-one", tmp_path)
    assert entries(tmp_path)[0].key == "key-one"
    assert sum(e.bytes for e in entries(tmp_path)) == cache.total_bytes(tmp_path)


def test_gc_removes_what_was_used_longest_ago(tmp_path: Path, build_sample: Build) -> None:
    newest, middle, oldest = three_entries(tmp_path, build_sample)
    size = entries(tmp_path)[0].bytes
    freed = cache.gc(2 * size + 10, tmp_path)
    assert [e.key for e in entries(tmp_path)] == [newest, middle]
    assert lookup(oldest, tmp_path) is None
    assert freed >= size - 10


def test_clear_removes_everything(tmp_path: Path, build_sample: Build) -> None:
    three_entries(tmp_path, build_sample)
    assert cache.clear(tmp_path) > 0
    assert cache.total_bytes(tmp_path) == 0


def test_the_limit_spares_the_entry_just_built(
    tmp_path: Path, build_sample: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_entries(tmp_path, build_sample)
    monkeypatch.setenv(env.CACHE_LIMIT.name, "1")
    path = get_or_build("key-four", build_sample, root=tmp_path)
    assert [e.path for e in entries(tmp_path)] == [path]


def test_verify_all_tells_the_broken_entry(tmp_path: Path, build_sample: Build) -> None:
    three_entries(tmp_path, build_sample)
    (entry_path("key-two", tmp_path) / "plan.json").unlink()
    faults = cache.verify_all(tmp_path)
    assert faults["key-one"] is None
    assert "plan.json" in str(faults["key-two"])
