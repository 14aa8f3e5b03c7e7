"""SIGTERM: nothing that was begun is lost, nothing new is taken, and the end comes in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import openai
import pytest
from live import MODEL, Live, PacedExecutor, live, until
from server_process import serve
from smollm2 import MARKS

from rusteeze.server import serving
from rusteeze.server.limits import Limits

PROMPT = [{"role": "user", "content": "a"}]


def read_all(connection: object) -> bytes:
    received = b""
    while part := connection.recv(65536):  # type: ignore[attr-defined]
        received += part
    return received


def drain(server: Live) -> None:
    server.server.handle_exit(signal.SIGTERM, None)


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_begun_is_finished(stream: bool) -> None:
    with live(PacedExecutor(pause=0.02)) as server:
        fields = {"messages": PROMPT, "max_tokens": 30, "ignore_eos": True, "stream": stream}
        connection = server.connect("/v1/chat/completions", fields)
        until(lambda: server.engine.scheduler.num_running == 1)
        drain(server)
        assert server.ask("GET", "/health/ready").json() == {"status": "shutting down"}
        assert server.ask("GET", "/health/live").status == 200
        refused = server.chat()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        answer = read_all(connection)
        assert b'"finish_reason":"length"' in answer
        assert (b"[DONE]" in answer) == stream
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_ends_with_an_error(stream: bool) -> None:
    with live(PacedExecutor(pause=0.05), limits=Limits(drain_seconds=0.3)) as server:
        fields = {"messages": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": stream}
        connection = server.connect("/v1/chat/completions", fields)
        until(lambda: server.engine.scheduler.num_running == 1)
        start = time.monotonic()
        drain(server)
        answer = read_all(connection)
        assert 0.2 < time.monotonic() - start < 2
        assert answer.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
        assert b"the server is shutting down" in answer
        connection.close()


def test_a_request_whose_body_is_on_its_way_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LAST_SECONDS", 0.2)
    with live() as server:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 3}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body[:5])
            until(lambda: bool(server.server.server_state.tasks))
            drain(server)
            time.sleep(1)
            connection.sendall(body[5:])
            assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", ["stream", "whole", "body"])
def test_the_second_signal_ends_everything_with_an_error(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with live(PacedExecutor(pause=0.02)) as server:
        fields = {"messages": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": kind == "stream"}
        if kind == "body":
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(head + b"content-length: 100\r\n\r\n{")
        else:
            connection = server.connect("/v1/chat/completions", fields)
            until(lambda: server.engine.scheduler.num_running == 1)
        until(lambda: bool(server.server.server_state.tasks))
        first = connection.recv(100) if kind == "stream" else b""
        start = time.monotonic()
        drain(server)
        drain(server)
        answer = first + read_all(connection)
        assert time.monotonic() - start < 1
        assert answer.startswith(b"HTTP/1.1 200" if kind == "stream" else b"HTTP/1.1 503")
        assert b"the server is shutting down" in answer
        assert kind != "stream" or answer.endswith(b"0\r\n\r\n")
        connection.close()
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


class TestProcess:
    pytestmark = MARKS

    def test_the_first_signal_drains(self, smollm2: Path) -> None:
        with serve(smollm2) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as ask:
            stream = ask.completions.create(
                model=served.model, prompt="Once", max_tokens=100, temperature=0, stream=True
            )
            texts = [next(stream).choices[0].text]
            served.signal()
            until(lambda: served.status("/health/ready") == 503)
            texts += [chunk.choices[0].text for chunk in stream]
            assert served.process.wait(10) == 0
            assert len("".join(texts)) > 100

    def test_the_second_stops_at_once(self, smollm2: Path) -> None:
        with serve(smollm2) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as ask:
            stream = ask.completions.create(
                model=served.model, prompt="Once", max_tokens=8000, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            next(stream)
            served.signal()
            until(lambda: served.status("/health/ready") == 503)
            start = time.monotonic()
            served.signal()
            served.process.wait(10)
            assert time.monotonic() - start < 3

    def test_killed_in_a_stream_and_started_again(self, smollm2: Path) -> None:
        with serve(smollm2) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as ask:
            stream = ask.completions.create(
                model=served.model, prompt="Once", max_tokens=8000, stream=True
            )
            next(stream)
            os.kill(served.process.pid, signal.SIGKILL)
            with pytest.raises(openai.APIConnectionError):
                list(stream)
        with serve(smollm2) as again:
            assert again.status("/health/ready") == 200

    def test_one_socket_is_listened_on(self, smollm2: Path) -> None:
        """On loopback, unless asked otherwise: no other door than the HTTP port."""
        with serve(smollm2) as served:
            fds = Path(f"/proc/{served.process.pid}/fd")
            inodes = {os.readlink(fd)[8:-1] for fd in fds.iterdir() if os.readlink(fd).startswith("socket:")}
            tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6", "udp", "udp6")]
            lines = [line.split() for table in tables for line in table.splitlines()[1:]]
            doors = [line[1] for line in lines if line[9] in inodes and line[3] in ("0A", "07")]
        assert doors == [f"0100007F:{int(served.url.rpartition(':')[2]):04X}"]
