"""A server that is killed in the middle of a stream: its client notices, and the next one serves as if nothing was."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import openai
import pytest
from server_process import Served, serve
from smollm2 import MARKS

pytestmark = MARKS

ASKED = {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "extra_body": {"ignore_eos": True}}
SHORT = {**ASKED, "max_tokens": 16}


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_killed_in_the_middle_and_started_again(smollm2: Path) -> None:
    with serve(smollm2) as served:
        port = served.url.rpartition(":")[2]
        with client(served) as ask:
            wanted = ask.completions.create(model=served.model, **SHORT).choices[0].text
            stream = iter(ask.completions.create(model=served.model, stream=True, **ASKED))
            pieces = [next(stream).choices[0].text for _ in range(5)]
            served.signal(signal.SIGKILL)
            with pytest.raises(openai.APIError):
                pieces += [chunk.choices[0].text for chunk in stream]
        assert served.process.wait(5) == -signal.SIGKILL
    assert wanted.startswith("".join(pieces[:5]))
    with serve(smollm2, "--port", port) as again:  # nothing of the old one is in its way
        assert again.url == served.url
        with client(again) as ask:
            assert ask.completions.create(model=again.model, **SHORT).choices[0].text == wanted
        assert again.status("/health/ready") == 200


def test_a_stream_that_is_cut_off_has_no_proper_end(smollm2: Path) -> None:
    """No client can take it for a whole answer: the chunked body never ends."""
    with serve(smollm2) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        body = json.dumps({
            "model": served.model, "prompt": "a", "max_tokens": 400, "stream": True, "ignore_eos": True,
        }).encode()  # fmt: skip
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            received = connection.recv(65536)
            served.signal(signal.SIGKILL)
            try:
                while part := connection.recv(65536):
                    received += part
            except ConnectionResetError:
                pass
    assert received.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")
