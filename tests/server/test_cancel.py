"""A client that leaves, in any state, frees what it held within a step, and disturbs nobody else."""

from __future__ import annotations

import json
import socket
import struct
import time
from threading import Event
from typing import Any

import pytest
from live import SECONDS, PacedExecutor, live, until

from rusteeze.runtime.params import Grammar
from rusteeze.server.limits import Limits

LONG = {"max_tokens": 200, "ignore_eos": True}
CHAT = "/v1/chat/completions"
PROMPT = [{"role": "user", "content": "the cat"}]


def leave(connection: socket.socket, how: str) -> None:
    if how == "half":
        connection.shutdown(socket.SHUT_WR)  # the rest stays open: nobody reads, nobody closes
        return
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_leaving_while_decoding(how: str, stream: bool, n: int) -> None:
    with live(PacedExecutor(pause=0.01)) as server:
        before = server.chat(max_tokens=4).json()["choices"]
        connection = server.connect(CHAT, {"messages": PROMPT, "stream": stream, "n": n, **LONG})
        until(lambda: server.engine.scheduler.num_running == n)
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        leave(connection, how)
        until(server.is_idle, seconds=1)
        assert server.metric("rusteeze_inference_requests_aborted_total") == n
        assert server.chat(max_tokens=4).json()["choices"] == before
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_held_to_a_grammar(stream: bool) -> None:
    with live(PacedExecutor(pause=0.01)) as server:
        fields = {"response_format": {"type": "regex", "regex": "[a-z ]{190}"}, "stream": stream, **LONG}
        connection = server.connect(CHAT, {"messages": PROMPT, **fields})
        until(lambda: server.engine.scheduler.num_running == 1)
        connection.close()
        until(server.is_idle, seconds=1)
        assert server.metric("rusteeze_inference_requests_aborted_total") == 1


def test_leaving_while_a_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with live(PacedExecutor(pause=0.01)) as server:
        compile_grammar, entered, leave_it = server.service.engine.compile_grammar, Event(), Event()

        def slowly(grammar: Grammar) -> None:
            entered.set()
            leave_it.wait(SECONDS)
            compile_grammar(grammar)

        monkeypatch.setattr(server.service.engine, "compile_grammar", slowly)
        fields = {"response_format": {"type": "regex", "regex": "[a-z ]{190}"}, **LONG}
        connection = server.connect(CHAT, {"messages": PROMPT, **fields})
        assert entered.wait(SECONDS)
        connection.close()
        time.sleep(0.05)
        leave_it.set()
        until(lambda: server.metric("rusteeze_inference_requests_started_total") == 1)
        until(server.is_idle, seconds=1)
        assert server.metric("rusteeze_inference_requests_aborted_total") == 1


def test_leaving_during_the_prefill() -> None:
    with live(PacedExecutor(pause=0.05, max_batched_tokens=8)) as server:
        connection = server.connect("/v1/completions", {"prompt": "a " * 100, **LONG})
        until(lambda: server.engine.scheduler.num_running == 1)
        connection.close()
        until(server.is_idle, seconds=1)
        assert server.metric("rusteeze_inference_time_to_first_token_seconds_count") == 0


def test_leaving_while_queued_leaves_the_one_that_runs_alone() -> None:
    with live(PacedExecutor(pause=0.02), max_num_seqs=1) as server:
        running = server.connect(CHAT, {"messages": PROMPT, "max_tokens": 40, "ignore_eos": True})
        until(lambda: server.engine.scheduler.num_running == 1)
        queued = server.connect(CHAT, {"messages": PROMPT, **LONG})
        until(lambda: server.service.engine.num_open == 2)
        queued.close()
        until(lambda: server.service.engine.num_open == 1, seconds=1)
        body = b""
        while b"\r\n\r\n" not in body or not body.endswith(b"}"):
            body += running.recv(65536)
        assert json.loads(body.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 40
        running.close()


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_after_a_request_that_came_too_early(stream: bool) -> None:
    """What follows a request before its answer is not read, so it hides no disconnect."""
    with live(PacedExecutor(pause=0.01)) as server:
        connection = server.connect(CHAT, {"messages": PROMPT, "stream": stream, **LONG})
        until(lambda: server.service.engine.num_open == 1)
        connection.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.05)
        connection.close()
        until(server.is_idle, seconds=1)


def test_a_request_that_came_too_early_is_not_answered() -> None:
    with live(PacedExecutor(pause=0.01)) as server:
        connection = server.connect("/v1/completions", {"prompt": "a", "max_tokens": 9, "ignore_eos": True})
        until(lambda: server.service.engine.num_open == 1)
        connection.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while part := connection.recv(65536):
            received += part
        assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 ") == 1
        assert received.endswith(b"}")
        connection.close()


def test_a_reader_that_never_reads_is_given_up() -> None:
    with live(PacedExecutor(), limits=Limits(write_seconds=0.3)) as server:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        fields: dict[str, Any] = {
            "messages": PROMPT, "stream": True, "n": 16, "logprobs": True, "top_logprobs": 20, **LONG
        }  # fmt: skip
        connection.close()
        connection = server.connect(CHAT, fields)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(lambda: server.service.engine.num_open > 0)
        until(lambda: not server.server.server_state.connections, seconds=8)
        connection.close()


def test_many_that_leave_at_once() -> None:
    with live(PacedExecutor(pause=0.002)) as server:
        connections = [
            server.connect(CHAT, {"messages": PROMPT, "stream": i % 2 == 0, **LONG}) for i in range(60)
        ]
        for number, connection in enumerate(connections):
            time.sleep(0.001 * (number % 5))
            leave(connection, "reset" if number % 3 else "close")
        until(server.is_idle)
        started = server.metric("rusteeze_inference_requests_started_total")
        assert server.metric("rusteeze_inference_requests_aborted_total") <= started
        assert server.chat().status == 200
