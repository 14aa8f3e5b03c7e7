"""A server on loopback around the mock model, in a thread of this process, and a plain way to ask it.

The model is a hash of the token history, so every answer has one right value that no other request can
influence; its tokens are bytes and whole characters, so its text is full of broken UTF-8.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mock_executor import MockExecutor
from tiny_tokenizers import tokenizer

from rusteeze.runtime.batch import Batch
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.template import ChatTemplate
from rusteeze.server.app import AppOptions, build_app
from rusteeze.server.limits import Limits
from rusteeze.server.metrics import Memory, Metrics
from rusteeze.server.replies import AsyncEngine
from rusteeze.server.service import ServedModel, Service
from rusteeze.server.serving import DrainingServer, bind, server_config

MODEL = "tiny"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
SECONDS = 10.0


class PacedExecutor(MockExecutor):
    """The mock model with a pause in every step and a fault on demand."""

    def __init__(self, pause: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**{"vocab_size": tokenizer().vocab_size, "num_blocks": 512, **kwargs})
        self.pause = pause
        self.before_step: Callable[[], None] = lambda: None

    def execute(self, batch: Batch) -> np.ndarray:
        self.before_step()
        if self.pause:
            time.sleep(self.pause)
        self.batches.clear()
        return super().execute(batch)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON of each event of a stream, which must end with [DONE]."""
        events = [line[6:] for line in self.body.decode().split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]


@dataclass
class Live:
    """A running server."""

    service: Service
    engine: SyncEngine
    executor: PacedExecutor
    server: DrainingServer
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own. A body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**sent, **self.headers, **(headers or {})})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, response.read())
        connection.close()
        return answer

    def chat(self, **fields: Any) -> Answer:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8}
        return self.ask("POST", "/v1/chat/completions", {**asked, "temperature": 0, **fields})

    def complete(self, **fields: Any) -> Answer:
        asked = {"model": MODEL, "prompt": "the cat", "max_tokens": 8, "temperature": 0}
        return self.ask("POST", "/v1/completions", {**asked, **fields})

    def connect(self, path: str, fields: dict[str, Any]) -> socket.socket:
        """A connection on which a request has been sent and nothing read."""
        data = json.dumps({"model": MODEL, "temperature": 0, **fields}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        connection.sendall(head.encode() + data)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        value = self.service.metrics.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value

    def is_idle(self) -> bool:
        """No sequence is open and every block is free."""
        pool = self.engine.scheduler.pool
        return not self.service.engine.num_open and not pool.num_used


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait for something that must become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def new_service(
    executor: PacedExecutor, limits: Limits, max_num_seqs: int = 32, max_queue: int = 1024, strict: bool = False,
    template: str = TEMPLATE,
) -> tuple[Service, SyncEngine]:  # fmt: skip
    words = tokenizer()
    eos = words.token_id("</s>")
    assert eos is not None
    engine = SyncEngine(executor, words, [eos], EngineConfig(max_num_seqs, max_queue=max_queue))
    length = engine.scheduler.limits.max_sequence_len
    model = ServedModel(
        MODEL, 1700000000, words, ChatTemplate(template), {"special_tokens": {"eos_token": "</s>"}}, length,
        executor.vocab_size,
    )  # fmt: skip
    metrics = Metrics(MODEL, engine.stats, Memory(1000, 10))
    wrapped = AsyncEngine(engine, metrics)
    return Service(model, wrapped, metrics, limits, strict), engine


@contextmanager
def live(
    executor: PacedExecutor | None = None, limits: Limits | None = None,
    options: AppOptions | None = None, **kwargs: Any,
) -> Iterator[Live]:  # fmt: skip
    """A server for the time of a test. At its end nothing may be open and no block in use."""
    executor = executor or PacedExecutor()
    service, engine = new_service(executor, limits or Limits(), **kwargs)
    listener = bind("127.0.0.1", 0)
    app = build_app(service, options)
    server = DrainingServer(server_config(app, service), service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    found = Live(service, engine, executor, server, listener.getsockname()[1])
    until(lambda: server.started)
    try:
        yield found
        if service.engine.is_alive:
            until(found.is_idle)
            engine.check_integrity()
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()
