from __future__ import annotations

import io

import pytest

from rusteeze.errors import UserError
from rusteeze.observe import GRAPHS, LAUNCHES, PASSES, RULES, Observer


def test_levels_are_cumulative():
    stream = io.StringIO()
    watcher = Observer(LAUNCHES, stream=stream)
    for level in (PASSES, LAUNCHES, GRAPHS):
        watcher.say(level, f"level {level}")
    assert stream.getvalue() == "level 1\nlevel 2\n"


def test_a_level_may_be_shown_alone():
    watcher = Observer(also={RULES})
    assert watcher.shows(RULES)
    assert not watcher.shows(PASSES)


def test_dumps_are_numbered_in_order(tmp_path):
    watcher = Observer(folder=tmp_path / "new")
    watcher.dump("import.ir", "a")
    watcher.dump("fuse.ir", "b")
    watcher.dump_as("kernels/linear.ll", "c")
    files = {
        p.relative_to(tmp_path / "new").as_posix(): p.read_text() for p in tmp_path.rglob("*.*")
    }
    assert files == {"00-import.ir": "a", "01-fuse.ir": "b", "kernels/linear.ll": "c"}


def test_nothing_is_written_without_a_folder():
    watcher = Observer()
    watcher.dump("import.ir", "a")
    assert watcher.written == 0


def test_the_environment_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("RUSTEEZE_DEBUG", "3")
    monkeypatch.setenv("RUSTEEZE_DUMP", str(tmp_path))
    watcher = Observer.from_environment()
    assert (watcher.level, watcher.folder) == (3, tmp_path)
    monkeypatch.setenv("RUSTEEZE_DEBUG", "loud")
    with pytest.raises(UserError, match="RUSTEEZE_DEBUG"):
        Observer.from_environment()
