"""Clients that keep one completion each in flight, as cheap as they can be: they share the machine with the server.

Each sends its prompts one after the other on one connection, greedy, end tokens ignored. Of an answer only
the times are taken at which its pieces arrive; it is looked at once, when it is whole.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise

PROMPT_TOKENS = 32
VOCABULARY = 40_000
Work = list[list[list[int]]]
"""For each client its prompts."""


@dataclass
class Load:
    """One run of all clients. Times in seconds: to the first piece of each answer, and between pieces of one.

    ``client_share``: of one core, what the clients themselves took."""

    tokens_per_second: float
    client_share: float
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def prompts(clients: int, rounds: int, seed: int | str) -> Work:
    draw = random.Random(seed)
    return [
        [[draw.randrange(1000, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(rounds)]
        for _ in range(clients)
    ]


class Client(asyncio.Protocol):
    """``done`` has the moments at which each answer was asked for and its pieces came."""

    def __init__(self, model: str, own: list[list[int]], new: int, stream: bool) -> None:
        self._bodies = [request(model, prompt, new, stream) for prompt in own]
        self._new, self._stream = new, stream
        self._answer: list[bytes] = []
        self._times: list[list[float]] = []
        self.done: asyncio.Future[list[list[float]]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        if not self._stream or b"data: " in data:  # some servers send the headers long before the first token
            self._times[-1].append(time.perf_counter())
        self._answer.append(data)
        if self._is_whole(data):
            self._check(b"".join(self._answer))
            self._send()

    def _is_whole(self, data: bytes) -> bool:
        if self._stream:  # the last chunk may come by itself
            end = data if len(data) > 64 else b"".join(self._answer[-2:])
            return end.endswith(b"\r\n0\r\n\r\n")
        return data.endswith(b"}")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the server closed the connection"))

    def _send(self) -> None:
        self._answer = []
        if not self._bodies or self.done.done():
            if not self.done.done():
                self.done.set_result(self._times)
            self._transport.close()
            return
        self._times.append([time.perf_counter()])
        self._transport.write(self._bodies.pop())

    def _check(self, answer: bytes) -> None:
        """A stream says how many tokens it had in its last event but one."""
        good = b'"completion_tokens":%d' % self._new in answer
        if not good or not answer.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(f"unexpected answer: {answer[:300]!r}"))


def request(model: str, prompt: list[int], new: int, stream: bool) -> bytes:
    fields: dict[str, object] = {
        "model": model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True,
        "stream": stream,
    }  # fmt: skip
    if stream:
        fields["stream_options"] = {"include_usage": True}
    body = json.dumps(fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def through_http(port: int, model: str, work: Work, new: int, stream: bool) -> Load:
    """Let all clients ask at once. RuntimeError when an answer is not what it should be."""

    async def one(own: list[list[int]]) -> list[list[float]]:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            lambda: Client(model, own, new, stream), "127.0.0.1", port
        )
        return await protocol.done

    async def everybody() -> list[list[list[float]]]:
        return await asyncio.gather(*map(one, work))

    start, used = time.perf_counter(), time.process_time()
    answers = [times for own in asyncio.run(everybody()) for times in own]
    seconds = time.perf_counter() - start
    load = Load(len(answers) * new / seconds, (time.process_time() - used) / seconds)
    for asked, *pieces in answers:
        load.first.append(pieces[0] - asked)
        tokens = pieces[:new]  # what comes after the last token are counts
        load.between += [b - a for a, b in pairwise(tokens)]
    return load
