"""A stream says what the whole answer says, in OpenAI's shape, and always ends."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import MODEL, Live, PacedExecutor, live, until

STOPS = st.lists(st.text("abc,é. \n", min_size=1, max_size=3), max_size=3)


def joined(events: list[Any], index: int = 0) -> str:
    choices = [c for e in events for c in e["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=12), stop=STOPS, max_tokens=st.integers(1, 40), n=st.integers(1, 3),
    seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 0.7, 2.0]),
)  # fmt: skip
def test_joined_deltas_are_the_whole_text(
    text: str, stop: list[str], max_tokens: int, n: int, seed: int, temperature: float, tiny: Live
) -> None:
    fields = {
        "messages": [{"role": "user", "content": text}], "stop": stop, "max_tokens": max_tokens, "n": n,
        "seed": seed, "temperature": temperature, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = tiny.chat(**fields).json()
    events = tiny.chat(**fields, stream=True, stream_options={"include_usage": True}).events()
    assert [joined(events, i) for i in range(n)] == [c["message"]["content"] for c in whole["choices"]]
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [events[-1]["usage"][c] for c in counts] == [whole["usage"][c] for c in counts]
    for choice in whole["choices"]:
        own = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        entries = [e for c in own if c["logprobs"] for e in c["logprobs"]["content"]]
        assert entries == choice["logprobs"]["content"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=STOPS, max_tokens=st.integers(0, 30), echo=st.booleans())
def test_so_for_completions(stop: list[str], max_tokens: int, echo: bool, tiny: Live) -> None:
    fields = {"stop": stop, "max_tokens": max_tokens, "echo": echo, "logprobs": 1, "n": 2}
    whole = tiny.complete(**fields).json()
    events = tiny.complete(**fields, stream=True).events()
    for choice in whole["choices"]:
        own = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert joined(events, choice["index"]) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            assert [v for c in own for v in c["logprobs"][name]] == values


def test_the_shape_of_a_stream(tiny: Live) -> None:
    answer = tiny.chat(stream=True, stream_options={"include_usage": True})
    events = answer.events()
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert events[-1]["choices"] == []
    assert [e["usage"] for e in events[:-1]] == [None] * (len(events) - 1)
    assert len({(e["id"], e["created"], e["model"], e["object"]) for e in events}) == 1


def test_pieces_are_sent_when_they_are_made() -> None:
    """Not held back until the client has acknowledged those before, which takes it 40 ms."""
    gaps: list[float] = []
    with live(PacedExecutor(pause=0.005)) as server:
        body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 8, "ignore_eos": True, "stream": True})
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            for _ in range(4):  # only later requests of a connection are acknowledged late
                connection.sendall(request)
                received, moments = b"", []
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    received += connection.recv(65536)
                    moments.append(time.monotonic())
                gaps.append(moments[1] - moments[0])
    assert min(gaps[1:]) < 0.03  # a busy machine may be late now and then


def test_a_client_that_falls_behind_gets_everything_in_order() -> None:
    """Pieces are written at once until its buffers are full, then they wait for it, then they are written at once."""
    executor = PacedExecutor(0.003, num_blocks=4096, max_model_len=2048, max_batched_tokens=512)
    fields = {"prompt": "a", "max_tokens": 400, "n": 8, "seed": 1, "temperature": 1.0, "ignore_eos": True}
    with live(executor) as server:
        whole = [c["text"] for c in server.complete(**fields).json()["choices"]]
        connections = server.server.server_state.connections
        until(lambda: not connections)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.connect(("127.0.0.1", server.port))
        until(lambda: len(connections) == 1)
        (own,) = connections
        own.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        body = json.dumps({"model": MODEL, "stream": True, **fields})
        head = "POST /v1/completions HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: own.flow.write_paused)
        received = b""
        while part := connection.recv(16384):
            received += part
            time.sleep(0.01)  # now behind, now not, while more is made
        connection.close()
    found = [""] * 8
    for line in received.split(b"data: ")[1:-1]:
        (choice,) = json.loads(line.partition(b"\n\n")[0])["choices"]
        found[choice["index"]] += choice["text"]
    assert found == whole


def test_without_asking_there_is_no_usage(tiny: Live) -> None:
    assert all("usage" not in event for event in tiny.chat(stream=True).events())


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_model_is_an_error_and_no_answer(stream: bool, tiny: Live) -> None:
    def fail() -> None:
        raise RuntimeError("at 0xdeadbeef in /secret/path")

    tiny.executor.before_step = fail
    answer = tiny.chat(stream=stream)
    tiny.executor.before_step = lambda: None
    assert answer.status == 500
    assert answer.json()["error"]["message"] == "internal error"
    assert tiny.chat(stream=stream).status == 200


def test_a_fault_on_the_way_ends_the_stream_with_an_error(tiny: Live) -> None:
    steps = iter(range(100))

    def fail_later() -> None:
        if next(steps) == 3:
            raise RuntimeError

    tiny.executor.before_step, tiny.executor.pause = fail_later, 0.02
    answer = tiny.chat(stream=True)
    tiny.executor.before_step, tiny.executor.pause = lambda: None, 0.0
    assert answer.status == 200
    assert answer.body.endswith(b'"type":"server_error","param":null,"code":"internal_error"}}\n\n')
    assert b"[DONE]" not in answer.body
