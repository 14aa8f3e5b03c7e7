"""What the server costs: the same requests through HTTP and through the bare engine, in turns.

    python benchmarks/serve_load.py MODEL.rz [--clients 32] [--rounds 3] [--new 128] [--repeat 3]

Each of the clients keeps one request in flight and sends ``rounds`` in all: random prompts of 32 tokens,
greedy, end tokens ignored. Server, load generator and engine share the machine's cores, so the server's
figure includes what the clients cost, which is printed apart.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from http_load import prompts, through_http

BARE = """
import json, sys, time
from pathlib import Path
from rusteeze.runtime import llm
from rusteeze.runtime.interface import SamplingParams
model = llm.load(Path(sys.argv[1]))
engine = model.engine
engine.generate([[0]], SamplingParams(temperature=0, max_tokens=1))
for line in sys.stdin:
    work, new = json.loads(line)
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    start = time.perf_counter()
    owner = {engine.submit(own.pop(), params): own for own in work}
    while owner:
        for output in engine.step():
            if output.finish_reason is not None:
                own = owner.pop(output.request_id)
                if own:
                    owner[engine.submit(own.pop(), params)] = own
    print(time.perf_counter() - start, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    for name, default in (("clients", 32), ("rounds", 3), ("new", 128), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    bare = subprocess.Popen(
        [sys.executable, "-c", BARE, str(options.artifact)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "rusteeze", "--json", "serve", str(options.artifact), "--port", "0", "--memory", "3GiB"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        compare(options, bare, server)
    finally:
        bare.kill()
        server.send_signal(signal.SIGTERM)
        server.wait()


def compare(
    options: argparse.Namespace, bare: subprocess.Popen[str], server: subprocess.Popen[str]
) -> None:
    assert server.stdout is not None
    assert bare.stdin is not None
    assert bare.stdout is not None
    said = ""
    while not said.endswith("\n}\n"):
        said += server.stdout.readline()
    facts = json.loads(said)
    port = int(facts["url"].rpartition(":")[2])
    found: dict[str, list[float]] = {"bare": [], "whole": [], "stream": []}
    shares: dict[str, list[float]] = {"whole": [], "stream": []}
    first: list[float] = []
    for seed in range(options.repeat):
        work = prompts(options.clients, options.rounds, seed)
        bare.stdin.write(json.dumps([work, options.new]) + "\n")
        bare.stdin.flush()
        tokens = options.clients * options.rounds * options.new
        found["bare"].append(tokens / float(bare.stdout.readline()))
        for kind in ("whole", "stream"):
            # Other prompts: the server has seen these.
            other = prompts(options.clients, options.rounds, f"{kind} {seed}")
            load = through_http(port, facts["model"], other, options.new, kind == "stream")
            found[kind].append(load.tokens_per_second)
            shares[kind].append(load.client_share)
            first += load.first if kind == "stream" else []
    for name, values in found.items():
        # Machines change their speed; runs that follow each other are compared.
        share = statistics.median(a / b for a, b in zip(values, found["bare"], strict=True))
        median = statistics.median(values)
        print(f"{name:7} {median:8.1f} tok/s  [{min(values):.1f}-{max(values):.1f}]  {share:.3f} of bare")
    for name, values in shares.items():
        print(f"{name:7} clients took {statistics.median(values):.3f} of a core")
    cuts = statistics.quantiles(first, n=100)
    print(f"time to first token, streams: p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
