"""``rusteeze info``: what a model or an artifact holds."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import click

import rusteeze.source
from rusteeze.artifact import cuda_contract
from rusteeze.artifact.contract import BLOCK_SIZE, Plan, decode_plan
from rusteeze.artifact.cuda_contract import CudaPlan, decode_cuda_plan
from rusteeze.artifact.store import Manifest, member, verify
from rusteeze.cli.artifacts import cached
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.output import bytes_text, print_json, print_table
from rusteeze.config import CompileOptions
from rusteeze.source import Source

PLAN = "plan.json"
_HASH = re.compile(r"_[0-9a-f]{8}$")


@click.command(cls=Command)
@click.argument("model")
def command(model: str) -> None:
    """Show facts, sizes, kernels and the memory plan of MODEL.

    A model that was never compiled is described by its files alone.
    """
    source = rusteeze.source.resolve(model)
    artifact = source.path if source.kind == "artifact" else cached(source, CompileOptions())
    facts = _source_facts(source) if artifact is None else _artifact_facts(artifact)
    if wants_json():
        print_json(facts)
    elif artifact is None:
        _print_source(facts)
    else:
        _print_artifact(facts)


def _source_facts(source: Source) -> dict[str, Any]:
    return {
        "model": source.name,
        "kind": source.kind,
        "path": str(source.path),
        "compiled": False,
        "bytes": source.num_bytes,
        "files": {path.name: path.stat().st_size for path in source.files()},
    }


def _artifact_facts(path: Path) -> dict[str, Any]:
    manifest = verify(path)
    plan = _read_plan(path, manifest)
    return {
        "artifact": str(path),
        "compiled": True,
        "key": manifest.key,
        "compiler": manifest.compiler,
        "facts": manifest.facts,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "files": {name: record.bytes for name, record in manifest.files.items()},
        "kernels": dict(Counter(map(role, _calls(plan))).most_common()),
        "variants": Counter(map(role, set(_calls(plan)))),
        "memory": _memory(plan),
    }


def _read_plan(path: Path, manifest: Manifest) -> Plan | CudaPlan:
    """The plan for CPUs, or that for GPUs where there is no other."""
    if PLAN in manifest.files:
        return decode_plan(member(path, manifest, PLAN).read_bytes())
    return decode_cuda_plan(member(path, manifest, cuda_contract.PLAN_FILE).read_bytes())


def _calls(plan: Plan | CudaPlan) -> list[str]:
    """The kernels of a step in order; on GPUs those of the smallest one."""
    if isinstance(plan, Plan):
        return [call.kernel for call in plan.calls]
    return [plan.kernels[launch.kernel].name for call in plan.calls for launch in call.choices[0].launches]


def role(kernel: str) -> str:
    """The kernel's name without its hash: layers have kernels of their own that differ in nothing else."""
    return _HASH.sub("", kernel)


def _memory(plan: Plan | CudaPlan) -> dict[str, int]:
    """Bytes that running takes, as functions of load: per token in a step, per row, per cached token."""
    kv_bytes = plan.kv_bytes_per_block() // BLOCK_SIZE
    arenas = {f"arena_bytes_per_{space}": size for space, size in plan.arena_row_bytes.items()}
    return arenas | {
        "kv_bytes_per_token": kv_bytes,
        "kv_bytes_of_longest_sequence": kv_bytes * plan.max_model_len,
        "max_model_len": plan.max_model_len,
    }


def _print_source(facts: dict[str, Any]) -> None:
    rows = [(name, facts[name]) for name in ("model", "kind", "path")]
    print_table(f"{facts['model']}, not compiled yet", ("fact", "value"), rows)
    _print_files(facts)


def _print_artifact(facts: dict[str, Any]) -> None:
    rows = [(name, facts[name]) for name in ("artifact", "key", "compiler")]
    rows += [(name, _plain(value)) for name, value in facts["facts"].items()]
    print_table("Artifact", ("fact", "value"), rows)
    _print_files(facts)
    variants, calls = facts["variants"], facts["kernels"]
    title = f"\nKernels: {sum(variants.values())} in {sum(calls.values())} calls"
    rows = [(name, variants[name], count) for name, count in calls.items()]
    print_table(title, ("kernel", "variants", "calls"), rows)
    memory = [(n, bytes_text(v) if "bytes" in n else v) for n, v in facts["memory"].items()]
    print_table("\nMemory", ("what", "size"), memory)


def _print_files(facts: dict[str, Any]) -> None:
    rows = [(name, bytes_text(size)) for name, size in facts["files"].items()]
    print_table(f"\nFiles, {bytes_text(facts['bytes'])}", ("file", "size"), rows)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
