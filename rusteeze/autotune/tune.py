"""Tuning on one page: artifact → search → artifact with new kernels, and what that is worth."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

import rusteeze.source
from rusteeze.artifact import cache
from rusteeze.artifact.store import publish
from rusteeze.artifact.tuned import fingerprint, user_table
from rusteeze.autotune.open_artifact import OpenArtifact
from rusteeze.autotune.session import Result, Session, name_of, tasks_of
from rusteeze.autotune.steps import compare_steps, kernel_shares
from rusteeze.codegen.cpu.isa import ALL
from rusteeze.codegen.cpu.schedule import Schedule, fallback
from rusteeze.config import CompileOptions
from rusteeze.runtime import llm
from rusteeze.runtime.backend import available_cores
from rusteeze.version import compiler_version

Report = Callable[[str, float], None]
MILLISECONDS = 1e3


def tune(
    model: str, artifact: Path, budget: float, threads: int | None, report: Report
) -> dict[str, Any]:
    """Search for ``budget`` seconds, then compile the kernels of ``artifact`` anew: in its place, or, where
    it is the cached one of ``model``, under its new key. Returns what happened, as plain data."""
    opened = OpenArtifact(artifact)
    report("looking where the time goes", 0.0)
    old = llm.load(artifact, threads)
    try:
        tasks = tasks_of(opened, kernel_shares(old.executor))
        session = Session(opened, threads or available_cores())
        try:
            results = session.run(tasks, budget, report)
        finally:
            session.close()
        report("compiling with the schedules found", 0.9)
        path = _published(model, opened)
        report("comparing whole steps", 0.95)
        steps = _steps(old, path, threads)
    finally:
        old.close()
    return {
        "artifact": str(path),
        "table": str(user_table()),
        "isa": session.isa.name,
        "left": len(tasks) - sum(r.entry.finished for r in results),
        "kernels": [_facts(r) for r in results],
        "steps": steps,
    }


def _published(model: str, opened: OpenArtifact) -> Path:
    source = rusteeze.source.resolve(model)
    facts = opened.manifest.facts
    if source.kind == "artifact":
        publish(opened.path, opened.rebuilt(), key=opened.manifest.key, facts=facts)
        return opened.path
    key = rusteeze.source.key(source, CompileOptions(), compiler_version(), fingerprint())
    return cache.get_or_build(key, opened.rebuilt(), facts=facts)


def _steps(old: llm.LLM, path: Path, threads: int | None) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="rusteeze-") as folder:
        # under another name: the loader takes a library whose name it knows for the one already loaded
        alias = Path(folder) / "tuned.rz"
        alias.symlink_to(path.absolute())
        new = llm.load(alias, threads)
        try:
            compared = list(compare_steps(old.executor, new.executor))
        finally:
            new.close()
    return [
        {
            "step": what, "before_ms": MILLISECONDS * median(pairs.old),
            "after_ms": MILLISECONDS * median(pairs.new), "ratio": pairs.ratio,
        }
        for what, pairs in compared
    ]  # fmt: skip


def _facts(result: Result) -> dict[str, Any]:
    entry = result.entry
    isa = next(isa for isa in ALL if isa.name == entry.isa)
    return {
        "name": name_of(entry.key),
        "share": result.share,
        "tried": result.tried,
        "skipped": result.skipped,
        "finished": entry.finished,
        "changed": _changed(entry.schedule, fallback(isa, entry.key.activation, entry.key.format)),
        "measured": msgspec.to_builtins(entry.measured),
    }


def _changed(schedule: Schedule, usual: Schedule) -> str:
    """``prefetch_bytes=0, block_tiles=2``: where a schedule is not the usual one."""
    found, before = msgspec.to_builtins(schedule), msgspec.to_builtins(usual)
    return ", ".join(f"{name}={value}" for name, value in found.items() if value != before[name])
