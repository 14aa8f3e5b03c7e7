"""Options, environment variables and versions: typed, strict, and documented."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import rusteeze
from rusteeze import env, version
from rusteeze.config import CompileOptions
from rusteeze.errors import ArtifactError, UserError

ROOT = Path(__file__).parents[3]


def test_defaults_are_valid() -> None:
    assert CompileOptions().target == "cpu"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", "tpu"), ("dtype", ""), ("activations", "f16"), ("max_model_len", 0),
        ("max_model_len", -5), ("max_model_len", True), ("max_model_len", 1.5), ("jobs", 0),
    ],
)  # fmt: skip
def test_bad_options_are_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} is "):
        CompileOptions(**{name: value})


def test_every_variable_is_documented() -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)`", (ROOT / "docs/env.md").read_text(), re.M))
    assert {v.name for v in env.VARIABLES} <= documented


def test_no_other_module_reads_the_environment() -> None:
    sources = [p for p in (ROOT / "rusteeze").rglob("*.py") if p.name != "env.py"]
    readers = [p.name for p in sources if re.search(r"os\.environ|getenv", p.read_text())]
    assert readers == []


def test_unset_and_empty_mean_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSTEEZE_DEBUG", raising=False)
    assert env.DEBUG.get() == 0
    monkeypatch.setenv("RUSTEEZE_DEBUG", "")
    assert env.DEBUG.get() == 0
    monkeypatch.setenv("RUSTEEZE_DEBUG", "3")
    assert env.DEBUG.get() == 3


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        (env.DEBUG, "6"), (env.DEBUG, "-1"), (env.DEBUG, "²"), (env.THREADS, "0"),
        (env.THREADS, "two"), (env.LOG_LEVEL, "loud"), (env.CACHE_LIMIT, "20 apples"),
    ],
)  # fmt: skip
def test_a_bad_value_is_an_error(
    variable: env.Variable, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable.name, text)
    with pytest.raises(UserError, match=rf"^{variable.name}='"):
        variable.get()


@pytest.mark.parametrize(
    ("plain", "own", "level"),
    [("critical", "", "warning"), ("TRACE", "info", "info"), ("10", "", "warning"), ("Debug", "", "debug")],
)
def test_levels_of_other_software_are_ignored(
    plain: str, own: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", plain)
    monkeypatch.setenv("RUSTEEZE_LOG_LEVEL", own)
    assert env.log_level() == level


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("2k", 2048),
        ("20GiB", 20 * 2**30),
        ("3 MB", 3 * 2**20),
        ("1t", 2**40),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert env.parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.5G", "1x", "1 2", "٣", "1ib b"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="such as 20GiB"):
        env.parse_bytes(text)


def test_user_errors_bear_the_mark() -> None:
    assert ArtifactError("x").user_error


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == rusteeze.__version__


def test_listed_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[>=<]", r)[0] for r in requirements}

    assert names(project["dependencies"]) == set(version.RUNTIME_PACKAGES)
    assert names(project["optional-dependencies"]["compile"]) == set(version.COMPILE_PACKAGES)


def test_every_option_is_in_the_key_unless_it_changes_nothing() -> None:
    other = {"target": "cpu", "dtype": "f32", "activations": "int8", "max_model_len": 9, "jobs": 9}
    base = CompileOptions()
    assert set(other) == {f.name for f in fields(base)}, (
        "decide whether the new field is in the key"
    )
    for name, value in other.items():
        changed = replace(base, **{name: value}).key_fields() != base.key_fields()
        assert changed == (name not in ("jobs", "target")), name
    assert "target" in base.key_fields()


def test_the_compiler_version_follows_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "__file__", str(tmp_path / "version.py"))
    fingerprint = version.compiler_version.__wrapped__
    (tmp_path / "passes").mkdir()
    (tmp_path / "cli").mkdir()
    (tmp_path / "passes" / "a.py").write_text("x = 1")
    first = fingerprint()
    (tmp_path / "cli" / "b.py").write_text("x = 1")
    assert fingerprint() == first
    (tmp_path / "passes" / "a.py").write_text("x = 2")
    assert fingerprint() != first
    assert first.startswith(f"{rusteeze.__version__}+")


@pytest.mark.parametrize(
    ("target", "cpu", "architectures"),
    [
        ("cpu", True, ()), ("cuda:sm_90", False, ("sm_90",)),
        ("cuda:sm_80,sm_89,sm_90", False, ("sm_80", "sm_89", "sm_90")),
        ("cpu,cuda:sm_80,cuda:sm_90", True, ("sm_80", "sm_90")),
    ],
)  # fmt: skip
def test_targets(target: str, cpu: bool, architectures: tuple[str, ...]) -> None:
    options = CompileOptions(target)
    assert (options.cpu, options.architectures) == (cpu, architectures)


@pytest.mark.parametrize("target", ["", "sm_90", "cuda:sm_70", "cuda", "cpu,cpu", "cuda:sm_90,sm_90", "cuda:cpu"])
def test_targets_that_do_not_exist(target: str) -> None:
    with pytest.raises(UserError, match="target is"):
        CompileOptions(target)


def test_gpus_have_no_int8_activations() -> None:
    with pytest.raises(UserError, match="int8"):
        CompileOptions("cuda:sm_90", activations="int8")
