"""Our server and vLLM's under the same clients: throughput, times to the first token and between tokens, start.

    .venv/bin/python benchmarks/serve.py rusteeze MODEL [--append]
    .venv/bin/python benchmarks/serve.py vllm FOLDER --python PYTHON [--append]

MODEL is what ``rusteeze serve`` takes, FOLDER holds bf16 weights (``bf16_folder.py``), PYTHON belongs to an
environment with vLLM. Streams of 64 new tokens after prompts of 32, greedy, end tokens ignored, prompts new in
every round; servers are measured one after the other, each alone. A start is timed from the new process to the
first 200 of its health route.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import machine
import table
from engines import version
from http_load import Load, prompts, through_http
from table import percentile

from rusteeze.peers.watch import Measured, tree_seconds, watched

NEW_TOKENS = 64
# Clients to prompts of each: enough to measure, and no minutes for one client.
ROUNDS = {1: 10, 8: 4, 32: 2, 128: 2}
MAX_MODEL_LEN, MAX_NUM_SEQS = 8192, 256
MODEL = "model"
PATIENCE_S = 300.0
RESULTS = Path(__file__).parent / "results.csv"


@dataclass(frozen=True)
class Server:
    """How one server is started on ``{port}``, and what rows call it."""

    provider: str
    weights: str
    command: list[str]
    ready: str
    env: dict[str, str]


def rusteeze(model: str, threads: int) -> Server:
    command = [
        sys.executable, "-m", "rusteeze", "serve", model, "--port", "{port}", "--threads", str(threads),
        "--served-model-name", MODEL, "--memory", "4GiB", "--max-num-seqs", str(MAX_NUM_SEQS),
    ]  # fmt: skip
    return Server("rusteeze", Path(model).name, command, "/health/ready", {})


def vllm(folder: str, python: str, threads: int) -> Server:
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", "{port}",
        "--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", "bfloat16",
        "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS),
        "--disable-log-stats",
    ]  # fmt: skip
    env = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return Server(f"vllm-cpu {version(python, 'vllm-cpu')}", "bf16", command, "/health", env)


@contextmanager
def started(server: Server) -> Iterator[tuple[int, int, float]]:
    """The server's port, its process, and seconds from its start until it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [part.format(port=port) for part in server.command]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **server.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not is_ready(f"http://127.0.0.1:{port}{server.ready}"):
            if process.poll() is not None or time.perf_counter() - start > PATIENCE_S:
                raise RuntimeError(f"{server.provider} does not start: {' '.join(command)}")
            time.sleep(0.005)
        yield port, process.pid, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:  # not there yet, or it listens and has to compile first
        return False


def measured(port: int, pid: int, clients: int, seed: int) -> tuple[Load, float]:
    """One run, and the share of the machine that neither server nor clients had meanwhile."""
    loads: list[Load] = []

    def run() -> float:
        work = prompts(clients, ROUNDS[clients], f"{clients} {seed}")
        loads.append(through_http(port, MODEL, work, NEW_TOKENS, stream=True))
        return loads[0].tokens_per_second

    foreign = watched(run, lambda: tree_seconds(pid) + time.process_time()).foreign
    return loads[0], foreign


def rows(server: Server, asked: argparse.Namespace) -> Iterator[dict[str, object]]:
    facts = {
        "date": datetime.date.today().isoformat(), "commit": machine.commit(Path(__file__).parents[1]),
        "cpu": machine.cpu_model(), "cores": machine.cores(), "threads": asked.threads,
    }  # fmt: skip

    def row(what: str, metric: str, values: list[Measured]) -> dict[str, object]:
        return table.row(facts, what, server.provider, server.weights, metric, values)

    starts = []
    for _ in range(asked.starts - 1):
        with started(server) as (_, _, seconds):
            starts.append(seconds)
    with started(server) as (port, pid, seconds):
        starts.append(seconds)
        yield row("serve, start to ready", "s", [Measured(each, 0.0) for each in starts])
        for clients in asked.clients:
            measured(port, pid, clients, -1)  # warms up
            found = [measured(port, pid, clients, seed) for seed in range(asked.repeats)]
            for what, metric, value in FIGURES:
                values = [Measured(value(load), foreign) for load, foreign in found]
                yield row(f"serve {clients}{what}", metric, values)


FIGURES: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
    ("", "tok/s", lambda load: load.tokens_per_second),
    (", first token, p50", "ms", lambda load: 1e3 * percentile(load.first, 50)),
    (", first token, p99", "ms", lambda load: 1e3 * percentile(load.first, 99)),
    (", between tokens, p50", "ms", lambda load: 1e3 * percentile(load.between, 50)),
    (", between tokens, p99", "ms", lambda load: 1e3 * percentile(load.between, 99)),
    (", clients' own use", "core", lambda load: load.client_share),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", choices=("rusteeze", "vllm"))
    parser.add_argument("model")
    parser.add_argument("--python", help="interpreter of vLLM's environment")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--clients", type=int, nargs="*", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--starts", type=int, default=1, help="starts to measure; the last one serves")
    parser.add_argument("--append", action="store_true", help=f"add the rows to {RESULTS.name}")
    asked = parser.parse_args()
    if asked.server == "vllm":
        server = vllm(asked.model, asked.python, asked.threads)
    else:
        server = rusteeze(asked.model, asked.threads)
    for found in rows(server, asked):
        print(table.line(found), flush=True)
        if asked.append:
            table.append(RESULTS, [found])


if __name__ == "__main__":
    main()
