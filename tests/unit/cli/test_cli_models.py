"""compile, info, validate, download and cache: what they say, and when the compiler is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

from rusteeze import source
from rusteeze.artifact import cache
from rusteeze.artifact.cache import get_or_build
from rusteeze.artifact.tuned import fingerprint
from rusteeze.cli import artifacts, extras
from rusteeze.cli.output import bytes_text
from rusteeze.config import CompileOptions
from rusteeze.version import compiler_version

Run = Callable[..., Result]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    return path


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A compiler that copies the sample artifact; the list of its calls."""
    calls: list[tuple[Any, ...]] = []

    def compile_model(
        model: str,
        out: Path | None,
        options: CompileOptions,
        progress: Callable[[str, float], None],
    ) -> Path:
        calls.append((Path(model).name, out, options))
        progress("tracing", 0.1)
        found = source.resolve(model)
        return get_or_build(source.key(found, options, compiler_version(), fingerprint()), _build)

    module = ModuleType("rusteeze.compiler")
    module.compile_model = compile_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rusteeze.compiler", module)
    return calls


def _build(folder: Path) -> None:
    (folder / "plan.json").write_text("{}")


def test_compile_prints_the_artifact(run: Run, gguf: Path, compiler: list[Any]) -> None:
    result = run("compile", gguf, "--max-model-len", "128", "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()).parent == cache.cache_dir() / "artifacts"
    assert compiler == [("tiny.gguf", None, CompileOptions(max_model_len=128, jobs=2))]


def test_compile_json(run: Run, gguf: Path, compiler: list[Any]) -> None:
    facts = json.loads(run("compile", gguf, "--json").stdout)
    assert Path(facts["artifact"]).is_dir()
    assert facts["bytes"] > 2
    assert facts["seconds"] >= 0


def test_compile_to_a_folder_always_compiles(run: Run, gguf: Path, compiler: list[Any]) -> None:
    run("compile", gguf)
    run("compile", gguf, "-o", "out.rz")
    assert [call[1] for call in compiler] == [None, Path("out.rz")]


def test_a_cached_model_is_not_compiled_again(run: Run, gguf: Path, compiler: list[Any]) -> None:
    assert run("compile", gguf).stdout == run("compile", gguf).stdout
    assert len(compiler) == 1


def test_force_compiles_what_is_cached(run: Run, gguf: Path, compiler: list[Any]) -> None:
    run("compile", gguf)
    assert run("compile", gguf, "--force").exit_code == 0
    assert len(compiler) == 2
    assert run("compile", gguf).exit_code == 0
    assert len(compiler) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--dtype", "f8"], "dtype is 'f8'; it must be one of auto, f32, bf16, f16"),
        (["--max-model-len", "0"], "max_model_len is 0; it must be a positive whole number"),
    ],
)
def test_compile_refuses_bad_options(run: Run, gguf: Path, option: list[str], message: str) -> None:
    result = run("compile", gguf, *option)
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_a_missing_compiler_package_is_named(
    run: Run, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.export")

    monkeypatch.setattr(extras, "import_module", missing)
    result = run("compile", gguf)
    assert result.exit_code == 2
    line = "error: compiling needs the package torch; run: pip install 'rusteeze[compile]'\n"
    assert result.stderr == line


WARM = """
import sys
from pathlib import Path
from rusteeze.cli.artifacts import artifact_for
from rusteeze.config import CompileOptions
print(artifact_for(sys.argv[1], CompileOptions()))
heavy = {"torch", "transformers", "tvm", "triton", "gguf", "rusteeze.compiler"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_a_warm_cache_needs_no_compiler(run: Run, gguf: Path, compiler: list[Any]) -> None:
    expected = run("compile", gguf).stdout
    command = [sys.executable, "-c", WARM, str(gguf)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == expected


def test_info_of_an_artifact(run: Run, artifact: Path) -> None:
    text = run("info", artifact).stdout
    for expected in ("llama", "some-key", "weights.safetensors", "2.0 KiB", "matmul_a"):
        assert expected in text
    assert "Kernels: 2 in 3 calls" in text


def test_info_json_counts_kernels_and_memory(run: Run, artifact: Path) -> None:
    facts = json.loads(run("info", artifact, "--json").stdout)
    assert facts["kernels"] == {"matmul_a": 2, "rms_norm": 1}
    assert facts["memory"]["kv_bytes_per_token"] == 640 // 16
    assert facts["memory"]["kv_bytes_of_longest_sequence"] == 640 // 16 * 64
    assert facts["memory"]["arena_bytes_per_T"] == 512
    assert facts["facts"] == {"family": "llama", "layers": 2}


def test_info_of_a_model_compiles_nothing(run: Run, gguf: Path, compiler: list[Any]) -> None:
    facts = json.loads(run("info", gguf, "--json").stdout)
    assert (facts["compiled"], facts["kind"], facts["bytes"]) == (False, "gguf", 104)
    assert "not compiled yet" in run("info", gguf).stdout
    assert compiler == []


def test_download_refuses_what_is_no_id(run: Run) -> None:
    result = run("download", "../etc/passwd")
    assert result.exit_code == 2
    assert "is not a Hugging Face id" in result.stderr


def test_download_offline_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")

    def offline(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("cannot find the snapshot\nplease connect")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    result = run("download", "org/name")
    assert result.exit_code == 2
    assert result.stderr == "error: org/name: not downloaded, and the hub cannot be reached\n"


def test_download_asks_for_safe_files_only(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    (tmp_path / "config.json").write_text("{}")
    asked: dict[str, Any] = {}

    def snapshot(model_id: str, **options: Any) -> str:
        asked.update(options, id=model_id)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    result = run("download", "org/name", "--revision", "v1", "--json")
    assert json.loads(result.stdout) == {"id": "org/name", "path": str(tmp_path), "bytes": 2}
    assert asked["revision"] == "v1"
    patterns = " ".join(asked["allow_patterns"])
    assert not any(kind in patterns for kind in (".bin", ".pt", ".py", ".pkl", "*.json"))


def test_cache_commands(run: Run, gguf: Path, compiler: list[Any], cache_root: Path) -> None:
    path = Path(run("compile", gguf).stdout.strip())
    (listed,) = json.loads(run("cache", "ls", "--json").stdout)
    assert (listed["path"], listed["key"]) == (str(path), path.stem)
    assert path.stem in run("cache", "ls").stdout
    assert run("cache", "path").stdout == f"{cache_root}\n"
    assert json.loads(run("cache", "verify", "--json").stdout) == {path.stem: None}
    assert json.loads(run("cache", "gc", "--json").stdout) == {"freed_bytes": 0}
    assert run("cache", "clear").stdout.startswith("freed ")
    assert json.loads(run("cache", "ls", "--json").stdout) == []


def test_cache_verify_fails_on_a_broken_entry(run: Run, gguf: Path, compiler: list[Any]) -> None:
    path = Path(run("compile", gguf).stdout.strip())
    (path / "plan.json").write_text("[]")
    result = run("cache", "verify")
    assert result.exit_code == 2
    assert "plan.json" in result.stdout
    assert result.stderr.startswith("error: broken")


def test_cache_gc_wants_a_size(run: Run) -> None:
    result = run("cache", "gc", "--max-size", "big")
    assert result.exit_code == 2
    assert "--max-size big: expected a size such as 20GiB" in result.stderr


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**50, "1024.0 TiB")],
)
def test_bytes_as_text(num_bytes: int, text: str) -> None:
    assert bytes_text(num_bytes) == text


def test_artifact_for_an_artifact_is_itself(artifact: Path) -> None:
    assert artifacts.artifact_for(str(artifact), CompileOptions()) == artifact
