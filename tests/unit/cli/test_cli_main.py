"""The command group: lazy, quick, and one line for every error."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from click.testing import Result

from rusteeze.cli.main import SUBCOMMANDS, main
from rusteeze.errors import UserError

Run = Callable[..., Result]


@pytest.mark.parametrize("name", list(SUBCOMMANDS))
def test_every_subcommand_has_help_and_the_common_options(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    if name != "cache":
        assert "--log-level" in result.output
        assert "--json" in result.output


def test_help_lists_every_subcommand(run: Run) -> None:
    result = run("--help")
    for name, text in SUBCOMMANDS.items():
        assert f"  {name}" in result.output
        assert text in result.output


HELP = """
import json, sys
from rusteeze.cli.main import main
main(["--help"], standalone_mode=False)
print(json.dumps([m for m in sys.modules if m.startswith(("numpy", "rusteeze", "rich"))]))
"""


def test_help_imports_neither_numpy_nor_any_subcommand() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {
        "rusteeze", "rusteeze.cli", "rusteeze.cli.main", "rusteeze.cli.command", "rusteeze.env",
        "rusteeze.errors",
    }  # fmt: skip


def test_help_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "rusteeze", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    # The aim is 0.15 s; the best of a few and a margin, since other tests run beside this one.
    assert min(seconds() for _ in range(5)) < 0.3


def test_unknown_subcommand_is_a_usage_error(run: Run) -> None:
    result = run("explode")
    assert result.exit_code == 2
    assert "No such command 'explode'" in result.stderr


class StrangerError(Exception):
    """Some room's own error, recognised by its mark alone."""

    user_error = True


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such\nmodel"), 2, "error: no such model"),
        (StrangerError("not this one"), 2, "error: not this one"),
        (KeyError("x"), 1, "error: KeyError: 'x' (add -l debug for the traceback)"),
    ],
)
def test_errors_are_one_line_on_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("rusteeze.cli.version.versions", fail)
    result = run("version")
    assert (result.exit_code, result.stderr, result.stdout) == (code, line + "\n", "")


def test_ctrl_c_ends_every_command_alike(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rusteeze.cli.version.versions", interrupted)
    result = run("version")
    assert (result.exit_code, result.stdout) == (130, "")


@pytest.mark.parametrize("arguments", [["-l", "debug", "version"], ["version", "-l", "debug"]])
def test_debug_level_shows_the_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("rusteeze.cli.version.versions", fail)
    result = run(*arguments)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: RuntimeError: boom")


def test_a_bad_level_in_the_environment_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTEEZE_LOG_LEVEL", "loud")
    result = run("version")
    assert result.exit_code == 2
    assert "RUSTEEZE_LOG_LEVEL='loud': expected one of" in result.stderr


@pytest.mark.parametrize("arguments", [["--json", "version"], ["version", "--json"]])
def test_json_may_come_before_or_after_the_name(run: Run, arguments: list[str]) -> None:
    found = json.loads(run(*arguments).stdout)
    assert found["python"] == sys.version.split()[0]
    assert found["click"]


def test_version_lists_packages_as_text(run: Run) -> None:
    lines = dict(line.split(maxsplit=1) for line in run("version").stdout.splitlines())
    assert lines["rusteeze"] == "0.1.0"
    assert lines["compiler"].startswith("0.1.0+")


def test_the_group_is_the_entry_point() -> None:
    assert main.name == "main"
    assert list(main.commands) == []
