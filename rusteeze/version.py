"""Versions: the package's own, its dependencies' and the fingerprint of its compiler.

Nothing is imported to learn a version. Example: ``compiler_version()`` gives ``0.1.0+5c1f0a93d7b2``.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from rusteeze import __version__

RUNTIME_PACKAGES = (
    "numpy", "tokenizers", "msgspec", "click", "rich", "minijinja", "filelock",
    "starlette", "uvicorn", "httptools", "prometheus-client", "pyyaml", "llguidance",
)  # fmt: skip
COMPILE_PACKAGES = (
    "torch", "transformers", "gguf", "apache-tvm", "apache-tvm-ffi", "huggingface_hub", "accelerate",
)  # fmt: skip

# Source, and tables of schedules, that decide what an artifact contains. A change here makes every cached artifact stale.
_COMPILER_SOURCES = (
    "ir", "weights", "frontend", "passes", "codegen", "artifact", "compiler.py"
)  # fmt: skip


def own_version() -> str:
    """The version of the package."""
    return __version__


def versions() -> dict[str, str | None]:
    """Package name to version, None where a package is not installed."""
    own = {"rusteeze": __version__, "python": platform.python_version()}
    return own | {name: _installed(name) for name in RUNTIME_PACKAGES + COMPILE_PACKAGES}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def compiler_version() -> str:
    """The version with a hash of the compiler's source, so that an edited compiler never meets a
    cached artifact of its former self. The same wheel gives the same text on every machine."""
    return f"{__version__}+{source_hash(_COMPILER_SOURCES)}"


def source_hash(names: tuple[str, ...]) -> str:
    """A short hash of the source of these rooms and files of the package."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in _source_files(root, names):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _source_files(root: Path, names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        entry = root / name
        if entry.is_dir():
            yield from sorted([*entry.rglob("*.py"), *entry.rglob("*.json")])
        else:
            yield from filter(Path.exists, [entry])
