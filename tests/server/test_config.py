"""Where a setting of `serve` comes from, and what is said about one that is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rusteeze import env
from rusteeze.cli import serve
from rusteeze.cli.main import main
from rusteeze.server.app import AppOptions
from rusteeze.server.config import ServeConfig

FILE = """
model: {path: file.gguf}
server: {host: file.example, port: 1, api_key: file}
engine: {max_num_seqs: 11, gpu_memory_utilization: 0.5}
"""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[ServeConfig]:
    """The settings with which a server would have been started."""
    found: list[ServeConfig] = []
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setattr(serve, "_serve", lambda config, path, start: found.append(config))
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def write(folder: Path, text: str) -> str:
    path = folder / "rusteeze.yaml"
    path.write_text(text)
    return str(path)


CASES = [
    # setting, default, in the file, variable and its value, option and its value, as read
    ("server.host", "127.0.0.1", "file.example", "RUSTEEZE_HOST", "env.example", "--host", "cli.example"),
    ("server.port", 8000, 1, "RUSTEEZE_PORT", "2", "--port", "3"),
    ("server.api_key", None, "file", "RUSTEEZE_API_KEY", "env", "--api-key", "cli"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@pytest.mark.parametrize("layers", list(itertools.product([False, True], repeat=3)), ids=str)
def test_the_nearest_layer_wins(
    case: tuple[Any, ...], layers: tuple[bool, bool, bool], seen: list[ServeConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    setting, default, in_file, variable, in_env, option, on_line = case
    file, environment, line = layers
    arguments = ["serve", "line.gguf"]
    if file:
        arguments += ["-c", write(tmp_path, FILE)]
    if environment:
        monkeypatch.setenv(variable, in_env)
    if line:
        arguments += [option, on_line]
    assert run(*arguments).exit_code == 0
    section, name = setting.split(".")
    wanted = on_line if line else in_env if environment else in_file if file else default
    assert str(getattr(getattr(seen[0], section), name)) == str(wanted)


def test_the_model_comes_from_anywhere(
    seen: list[ServeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no model" in run("serve").stderr
    run("serve", "-c", write(tmp_path, FILE))
    monkeypatch.setenv("RUSTEEZE_MODEL", "env.gguf")
    run("serve", "-c", write(tmp_path, FILE))
    run("serve", "line.gguf", "-c", write(tmp_path, FILE))
    assert [c.model.path for c in seen] == ["file.gguf", "env.gguf", "line.gguf"]
    assert seen[0].engine.max_num_seqs == 11


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine: {max_num_seq: 1}", "unknown key engine.max_num_seq; did you mean engine.max_num_seqs?"),
        ("sever: {}", "unknown key sever; did you mean server?"),
        ("server: {cors: {enable: true}}", "unknown key server.cors.enable; did you mean server.cors.enabled?"),
        ("engine: {zzz: 1}", "unknown key engine.zzz; there are max_num_seqs"),
        ("server: {port: 70000}", "server.port is 70000; it must be a whole number, at most 65535"),
        ("server: {port: '1'}", "server.port is '1'; it must be a whole number"),
        ("server: {api_key: ''}", "server.api_key must be text without spaces, and not empty"),
        ("server: {api_key: 7}", "server.api_key must be text without spaces, and not empty"),
        ("server: {drain_seconds: -1}", "server.drain_seconds is -1; it must be a number, at least 0"),
        ("server: {cors: {enabled: 5}}", "server.cors.enabled is 5; it must be true or false"),
        ("engine: {memory: 0MiB}", "engine.memory is '0MiB': expected more than nothing"),
        ("engine: {block_size: 32}", "16 is the only value"),
        ("engine: {memory: lots}", "engine.memory is 'lots': expected a size such as 20GiB"),
        ("model: {device: tpu}", "model.device is 'tpu'; it must be text"),
        ("engine: 5", "engine is 5; it must be a section with settings"),
        ("- a", "expected sections"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, said: str, seen: list[ServeConfig], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    for arguments in (["serve", "m.gguf", "-c", path], ["validate", path]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: rusteeze.yaml: ")
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not seen


def test_a_file_that_is_right(tmp_path: Path) -> None:
    result = run("validate", write(tmp_path, FILE))
    assert result.exit_code == 0
    assert "settings: ok" in result.stdout
    assert run("validate", write(tmp_path, "")).exit_code == 0
    assert run("validate", str(tmp_path / "none.yaml")).exit_code == 2


def test_options_are_checked_like_the_file(seen: list[ServeConfig]) -> None:
    assert "16 is the only value" in run("serve", "m", "--block-size", "8").stderr
    assert "engine.max_num_seqs is 0; it must be a whole number, at least 1" in run("serve", "m", "--max-num-seqs", "0").stderr
    assert run("serve", "m", "--block-size", "16", "--memory", "6GiB").exit_code == 0
    assert seen[0].memory_bytes == 6 * 2**30


def test_an_empty_key_is_no_open_door(
    seen: list[ServeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("", " ", "a b"):
        assert "server.api_key must be text" in run("serve", "m", "--api-key", key).stderr
    assert not seen
    monkeypatch.setenv("RUSTEEZE_API_KEY", "")
    assert run("serve", "m").exit_code == 0
    assert seen[0].server.api_key is None
    with pytest.raises(ValueError, match="protects nothing"):
        AppOptions(api_key="")


@pytest.mark.parametrize(
    ("arguments", "hosts"),
    [([], ()), (["--host", "::1"], ()), (["--host", "0.0.0.0"], None)], ids=str,
)
def test_hosts_are_checked_on_loopback(
    arguments: list[str], hosts: tuple[str, ...] | None, seen: list[ServeConfig]
) -> None:
    run("serve", "m", *arguments)
    assert serve._app_options(seen[0]).hosts == hosts


def test_hosts_that_are_named(seen: list[ServeConfig], tmp_path: Path) -> None:
    file = write(tmp_path, "server: {host: 0.0.0.0, allowed_hosts: [api.example]}")
    run("serve", "m", "-c", file)
    assert serve._app_options(seen[0]).hosts == ("api.example",)


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with serve.bind("127.0.0.1", 0) as taken:
        result = run("serve", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "Address already in use; see --host and --port" in result.stderr
