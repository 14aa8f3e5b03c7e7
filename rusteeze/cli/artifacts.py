"""From a MODEL argument to an artifact: reused when its key is cached, compiled otherwise.

The compiler, and with it torch, is imported only when something has to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import rusteeze.source
from rusteeze.artifact import cache
from rusteeze.artifact.tuned import fingerprint
from rusteeze.cli.extras import load_extra
from rusteeze.cli.progress import progress
from rusteeze.config import CompileOptions
from rusteeze.errors import UserError
from rusteeze.source import Source
from rusteeze.version import compiler_version


def artifact_for(model: str, options: CompileOptions) -> Path:
    """The artifact that ``model`` names or compiles to. UserError when there is no such model, or an
    artifact should have another cache."""
    source = rusteeze.source.resolve(model)
    if source.kind == "artifact":
        if options.kv_dtype != "auto":
            raise UserError(f"--kv-dtype is a matter of compiling, and {source.path.name} is compiled already")
        return source.path
    return cached(source, options) or compile_source(model, None, options)


def compiled_anew(model: str, options: CompileOptions) -> Path:
    """As ``artifact_for``, but what the cache may hold is replaced. UserError for an artifact."""
    source = rusteeze.source.resolve(model)
    if source.kind == "artifact":
        raise UserError(f"{model} is an artifact, not a model that could be compiled")
    cache.remove(_key(source, options))
    return compile_source(model, None, options)


def cached(source: Source, options: CompileOptions) -> Path | None:
    """The verified artifact of an earlier compilation, if there is one."""
    return cache.lookup(_key(source, options))


def why_not_cached(source: Source, options: CompileOptions) -> str:
    """Of what ``cached`` has not found: quarantined, when compiling replaces an entry that is broken, or miss."""
    return "quarantined" if cache.entry_path(_key(source, options)).exists() else "miss"


def _key(source: Source, options: CompileOptions) -> str:
    return rusteeze.source.key(source, options, compiler_version(), fingerprint())


def compile_source(model: str, out: Path | None, options: CompileOptions) -> Path:
    """Compile with progress on stderr. UserError when the compiler is not installed."""
    compile_model: Callable[..., Path] = load_extra("rusteeze.compiler", "compiling").compile_model
    with progress(f"compiling {Path(model).name}") as report:
        return compile_model(model, out, options, report)
