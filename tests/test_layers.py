"""Who may import whom, read from the source. The picture behind these tables is docs/structure.md.

A room is a folder or a single module of the package. Imports under TYPE_CHECKING and inside functions
count like any other: an import that is hidden is still a dependency.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rusteeze"

# Leaves hold plain values and files; among themselves only what is written here.
LEAVES: dict[str, set[str]] = {
    "errors": set(),
    "env": {"errors"},
    "config": {"errors"},
    "observe": {"env"},
    "source": {"config", "env", "errors"},
    "version": {"__init__"},
    "artifact": {"env", "errors", "version"},
    "weights": {"errors"},
}
_LEAVES = set(LEAVES)
_PLAIN = _LEAVES - {"weights"}

# Room to the rooms it may import, besides itself. What is not written is forbidden.
ROOMS: dict[str, set[str]] = LEAVES | {
    "__init__": set(),
    "ir": set(),
    "frontend": {"ir"} | _LEAVES,
    "passes": {"ir"} | _LEAVES,
    "codegen": {"ir"} | _LEAVES,
    "model_weights": {"frontend", "passes", "codegen"} | _LEAVES,
    "compiler": {"ir", "frontend", "passes", "codegen", "model_weights"} | _LEAVES,
    "runtime": _PLAIN,
    "autotune": {"ir", "codegen", "compiler", "runtime"} | _LEAVES,
    "quantize": {"ir", "frontend", "passes"} | _LEAVES,
    "rlm": {"runtime"} | _PLAIN,
    "server": {"runtime", "rlm"} | _PLAIN,
    "peers": {"runtime"} | _PLAIN,
    "cli": {"compiler", "autotune", "quantize", "frontend", "passes", "ir", "runtime", "rlm", "server", "peers", "__init__"}
    | _PLAIN,
    "__main__": {"cli"},
}

# Foreign package to the modules through which it comes in, as path prefixes below rusteeze/.
DOORS: dict[str, tuple[str, ...]] = {
    "torch": ("frontend/", "quantize/"),
    "transformers": ("frontend/",),
    "gguf": ("frontend/", "quantize/write_gguf.py"),
    "tvm": ("codegen/cpu/",),
    "triton": ("codegen/gpu/",),
    "tvm_ffi": ("codegen/cpu/", "runtime/launch.py"),
    "cuda": ("runtime/cuda/driver.py",),
    "ctypes": ("runtime/launch.py", "peers/peer_llamacpp.py"),
    "tokenizers": ("runtime/tokens.py", "frontend/", "quantize/calibration.py"),
    "minijinja": ("runtime/template.py",),
    "llguidance": ("runtime/grammar.py",),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
    "prometheus_client": ("server/",),
    "re2": ("rlm/search.py",),
    "click": ("cli/",),
    "answering": ("peers/peer_",),  # beside the scripts, which foreign interpreters run
    "llama_cpp": ("peers/peer_llamacpp.py",),
    "openvino": ("peers/peer_openvino.py",),
    "openvino_genai": ("peers/peer_openvino.py",),
    "vllm": ("peers/peer_vllm.py",),
    "matplotlib": ("cli/roofline.py",),
    "rich": ("cli/", "observe.py"),
    "huggingface_hub": ("cli/download.py",),
    "filelock": ("artifact/",),
    "safetensors": ("frontend/", "quantize/work.py", "quantize/shards.py"),
}
# What may be imported anywhere, where the package's own rules do not say otherwise.
ANYWHERE = {"numpy", "msgspec"}

FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
NETWORK = {"socket", "urllib", "http", "requests", "httpx", "ftplib", "smtplib", "aiohttp"}


@dataclass(frozen=True)
class Import:
    """One import statement: the module that it stands in, its line, and what is imported."""

    path: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"rusteeze/{self.path}:{self.line} imports {self.target}"


def sources(package: Path = PACKAGE) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: str, tree: ast.Module) -> Iterator[Import]:
    """All imports, `from a import b` as both a and a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(path, node.lineno, name.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"rusteeze/{path}:{node.lineno}: imports are absolute"
            for name in node.names:
                yield Import(path, node.lineno, f"{node.module}.{name.name}")


ALL_IMPORTS = [found for path, tree in sources() for found in imports_of(path, tree)]


def room_of_path(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def room_of_target(target: str) -> str | None:
    """The room that an import reaches: None outside the package, "__init__" for the package itself."""
    top, _, rest = target.partition(".")
    if top != "rusteeze":
        return None
    name = rest.partition(".")[0]
    exists = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
    return name if name and exists else "__init__"


def is_allowed(found: Import) -> bool:
    source, target = room_of_path(found.path), room_of_target(found.target)
    return target is None or target == source or target in ROOMS[source]


def test_every_room_has_its_rule() -> None:
    rooms = {room_of_path(path) for path, _ in sources()}
    assert rooms <= set(ROOMS), f"write the rule of {rooms - set(ROOMS)}"


def test_rooms_import_downwards_only() -> None:
    assert [str(found) for found in ALL_IMPORTS if not is_allowed(found)] == []


def test_the_rules_have_no_cycle() -> None:
    assert list(TopologicalSorter(ROOMS).static_order())


def module_of(path: str) -> str:
    return "rusteeze." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_modules_have_no_cycle() -> None:
    modules = {module_of(path): path for path, _ in sources()}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for found in ALL_IMPORTS:
        target = found.target if found.target in modules else found.target.rpartition(".")[0]
        own = module_of(found.path)
        if target in modules and target != own and not is_own_package(own, target):
            graph[own].add(target)
    assert list(TopologicalSorter(graph).static_order())


def is_own_package(module: str, target: str) -> bool:
    """`from rusteeze.ir import x` inside rusteeze.ir.y: the package gathers its parts, it needs them all."""
    return module.startswith(target + ".")


def test_foreign_packages_have_one_door() -> None:
    strangers = []
    for found in ALL_IMPORTS:
        top = found.target.partition(".")[0]
        known = top == "rusteeze" or top in ANYWHERE
        if not known and not found.path.startswith(doors_of(top)):
            strangers.append(str(found))
    assert strangers == []


def doors_of(package: str) -> tuple[str, ...]:
    """Path prefixes that may import ``package``: all for the standard library, none for a stranger."""
    if package in DOORS:
        return DOORS[package]
    return ("",) if package in sys.stdlib_module_names else ()


def test_no_private_names_cross_rooms() -> None:
    def is_private(found: Import) -> bool:
        name = found.target.rpartition(".")[2]
        crosses = room_of_target(found.target) not in (None, room_of_path(found.path))
        return crosses and name.startswith("_") and not name.startswith("__")

    assert [str(found) for found in ALL_IMPORTS if is_private(found)] == []


def test_data_is_never_executed() -> None:
    modules = [str(i) for i in ALL_IMPORTS if i.target.partition(".")[0] in FORBIDDEN_MODULES]
    assert modules == []
    assert [where for path, tree in sources() for where in executions(path, tree)] == []


def executions(path: str, tree: ast.Module) -> Iterator[str]:
    """Calls of eval and its like, and of torch.load, which unpickles."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        trusts = any(
            k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords
        )
        if called in FORBIDDEN_CALLS or called == "torch.load" or trusts:
            yield f"rusteeze/{path}:{node.lineno} calls {called}"


def test_there_is_no_network_code_outside_download_and_server() -> None:
    allowed = ("cli/download.py", "server/")
    found = [i for i in ALL_IMPORTS if i.target.partition(".")[0] in NETWORK]
    assert [str(i) for i in found if not i.path.startswith(allowed)] == []


def test_the_environment_is_read_in_one_place() -> None:
    readers = [
        f"rusteeze/{path}:{node.lineno}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    ]
    assert {where.partition(":")[0] for where in readers} == {"rusteeze/env.py"}


def importable(folder: str) -> list[str]:
    return [module_of(path) for path, _ in sources() if path.startswith(folder)]


@pytest.mark.parametrize("folder", ["runtime/", "artifact/", "server/", "cli/main.py", "cli/generate.py", "cli/serve.py"])
def test_running_a_model_imports_no_compiler(folder: str) -> None:
    names = importable(folder)
    assert names
    script = f"import sys, {', '.join(names)}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {
        "torch",
        "transformers",
        "tvm",
        "triton",
        "gguf",
        "onnx",
        "huggingface_hub",
    }


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """The rules applied to a bad package: every one of them must notice."""
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "bad.py").write_text(
        "def f(x):\n    import torch, pickle, socket\n    from rusteeze.ir.graph import _secret\n"
        "    return eval(x), load(trust_remote_code=True)\n"
    )
    ((path, tree),) = sources(tmp_path)
    found = {i.target: i for i in imports_of(path, tree)}
    assert not is_allowed(found["rusteeze.ir.graph._secret"])
    assert not path.startswith(doors_of("torch"))
    assert "pickle" in FORBIDDEN_MODULES & set(found)
    assert "socket" in NETWORK & set(found)
    assert len(list(executions(path, tree))) == 2


def test_the_map_names_every_room() -> None:
    text = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
    rooms = {room_of_path(path) for path, _ in sources()} - {"__init__", "__main__"}
    missing = {r for r in rooms if f"`rusteeze/{r}/`" not in text and f"{r}.py`" not in text}
    assert missing == set()
