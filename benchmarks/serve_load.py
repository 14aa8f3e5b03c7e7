"""What the server costs: the same requests through HTTP and through the bare engine, in turns.

    python benchmarks/serve_load.py MODEL.rz [--clients 32] [--rounds 3] [--new 128] [--repeat 3]

Each of the clients keeps one request in flight and sends ``rounds`` in all: random prompts of 32 tokens,
greedy, end tokens ignored. Server, load generator and engine share the machine's cores, so the server's
figure includes what the clients cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROMPT_TOKENS = 32
VOCABULARY = 40_000


@dataclass
class Load:
    """One run: tokens per second over all clients, and times to the first event in seconds."""

    tokens_per_second: float
    first: list[float]


def prompts(clients: int, rounds: int, seed: int) -> list[list[list[int]]]:
    draw = random.Random(seed)
    return [
        [[draw.randrange(1000, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(rounds)]
        for _ in range(clients)
    ]


class Client(asyncio.Protocol):
    """Sends its prompts one after the other on one connection. As cheap as a client can be, because it
    shares the machine with what is measured: an answer is looked at once, when it is whole."""

    def __init__(self, model: str, own: list[list[int]], new: int, stream: bool) -> None:
        self._bodies = [request(model, prompt, new, stream) for prompt in own]
        self._end = b"[DONE]\n\n\r\n0\r\n\r\n" if stream else b"}"
        self._new, self._stream = new, stream
        self._answer: list[bytes] = []
        self.first: list[float] = []
        self.done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        if not self._answer:
            self.first.append(time.perf_counter() - self._start)
        self._answer.append(data)
        if data.endswith(self._end):
            self._check(b"".join(self._answer))
            self._send()

    def _send(self) -> None:
        self._answer = []
        if not self._bodies or self.done.done():
            self._transport.close()
            if not self.done.done():
                self.done.set_result(self.first)
            return
        self._start = time.perf_counter()
        self._transport.write(self._bodies.pop())

    def _check(self, answer: bytes) -> None:
        good = self._stream or b'"completion_tokens":%d,' % self._new in answer
        if not good or not answer.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"unexpected answer: {answer[:300]!r}"))


def request(model: str, prompt: list[int], new: int, stream: bool) -> bytes:
    body = json.dumps({
        "model": model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True,
        "stream": stream,
    }).encode()  # fmt: skip
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def client(port: int, model: str, own: list[list[int]], new: int, stream: bool) -> list[float]:
    """Times to the first bytes of each answer."""
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(
        lambda: Client(model, own, new, stream), "127.0.0.1", port
    )
    return await protocol.done


def through_http(port: int, model: str, work: list[list[list[int]]], new: int, stream: bool) -> Load:
    async def everybody() -> list[list[float]]:
        return await asyncio.gather(*(client(port, model, own, new, stream) for own in work))

    start = time.perf_counter()
    first = asyncio.run(everybody())
    seconds = time.perf_counter() - start
    return Load(sum(map(len, work)) * new / seconds, [value for own in first for value in own])


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
    first: list[float] = []
    for seed in range(options.repeat):
        work = prompts(options.clients, options.rounds, seed)
        bare.stdin.write(json.dumps([work, options.new]) + "\n")
        bare.stdin.flush()
        tokens = options.clients * options.rounds * options.new
        found["bare"].append(tokens / float(bare.stdout.readline()))
        for kind in ("whole", "stream"):
            # Other prompts: the server has seen these.
            other = prompts(options.clients, options.rounds, hash((seed, kind == "stream")) % 10**6 + 100)
            load = through_http(port, facts["model"], other, options.new, kind == "stream")
            found[kind].append(load.tokens_per_second)
            first += load.first if kind == "stream" else []
    for name, values in found.items():
        # Machines change their speed; runs that follow each other are compared.
        share = statistics.median(a / b for a, b in zip(values, found["bare"], strict=True))
        median = statistics.median(values)
        print(f"{name:7} {median:8.1f} tok/s  [{min(values):.1f}-{max(values):.1f}]  {share:.3f} of bare")
    cuts = statistics.quantiles(first, n=100)
    print(f"time to first token, streams: p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
