"""Who may ask, and what a hostile client achieves: an error of its own, and nothing else."""

from __future__ import annotations

import ast
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import MODEL, Live, PacedExecutor, live, until
from starlette.routing import Route

from rusteeze.runtime.template import ChatTemplate
from rusteeze.server import access
from rusteeze.server.app import ROUTES, AppOptions
from rusteeze.server.limits import Limits

KEY = "s3cret-é"
PATHS = [route.path.replace("{model:path}", MODEL) for route in ROUTES if isinstance(route, Route)]
LEAK = re.compile(rb"0x[0-9a-fA-F]{6,}|/root/|/home/|/work/|\.py\b|Traceback|File \"")


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live(options=AppOptions(api_key=KEY, cors_origins=["https://good.example"])) as server:
        yield server


def bearer(key: str) -> dict[str, Any]:
    return {"authorization": f"Bearer {key}".encode()}


# Keys


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/", "//health/live", "/health/live/", "/health/ready%2f.."])
def test_every_path_is_closed_but_two(path: str, locked: Live) -> None:
    open_paths = {"/health/live", "/health/ready"}
    for method in ("GET", "POST", "PUT", "OPTIONS"):
        answer = locked.ask(method, path)
        assert (answer.status == 401) == (path not in open_paths), (method, path)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY])
def test_wrong_keys(header: str, locked: Live) -> None:
    answer = locked.ask("GET", "/version", headers={"authorization": header.encode()})  # type: ignore[dict-item]
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_right_key(locked: Live) -> None:
    assert locked.ask("GET", "/version", headers=bearer(KEY)).status == 200


def test_keys_are_compared_in_constant_time(locked: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is that of compare_digest, whatever it says."""
    monkeypatch.setattr(access.hmac, "compare_digest", lambda given, wanted: True)
    assert locked.ask("GET", "/version", headers=bearer("anything")).status == 200


def test_other_origins(locked: Live, tiny: Live) -> None:
    asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
    good = locked.ask("OPTIONS", "/v1/chat/completions", headers=asked)
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    bad = locked.ask("OPTIONS", "/v1/chat/completions", headers={**asked, "origin": "https://bad.example"})
    assert "access-control-allow-origin" not in bad.headers
    assert "access-control-allow-origin" not in tiny.ask("OPTIONS", "/v1/chat/completions", headers=asked).headers


def test_a_browser_asks_as_the_official_client_does(locked: Live) -> None:
    """Its preflight names headers of its own, and it may read what it needs for trying again."""
    origin, names = {"origin": "https://good.example"}, "authorization,content-type,x-stainless-lang,x-stainless-os"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": names}
    allowed = locked.ask("OPTIONS", "/v1/chat/completions", headers={**origin, **asked})
    assert allowed.status == 200
    assert set(names.split(",")) <= set(allowed.headers["access-control-allow-headers"].replace(" ", "").split(","))
    refused = locked.ask("POST", "/v1/chat/completions", {}, headers={**origin, **bearer("wrong")})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://good.example")
    assert "retry-after" in refused.headers["access-control-expose-headers"]


# Hosts


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:1", 200), ("127.1.2.3", 200), ("[::1]:8000", 200),
        ("api.localhost", 200), ("api.example:80", 200), ("evil.example", 403), ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403), ("localhost.evil.example", 403), ("10.0.0.1", 403), ("", 403), ("[", 403),
        ("evillocalhost", 403),
    ],
)  # fmt: skip
def test_only_known_hosts_are_served(host: str, status: int) -> None:
    with live(options=AppOptions(hosts=["API.example"])) as server:
        assert server.ask("GET", "/version", headers={"host": host}).status == status
        assert server.ask("GET", "/health/live", headers={"host": host}).status == 200
        answer = server.ask("POST", "/v1/chat/completions", {}, headers={"host": host})
        assert (answer.status == 403) == (status == 403)


def test_nothing_is_redirected(tiny: Live) -> None:
    assert tiny.ask("GET", "/version/", headers={"host": "evil.example"}).status == 404


# Bodies


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    limits = Limits(
        max_body_bytes=2000, max_header_bytes=4000, max_request_tokens=100, body_seconds=0.3,
        header_seconds=0.4,
    )  # fmt: skip
    with live(PacedExecutor(pause=0.005), limits=limits, max_num_seqs=2, max_queue=2) as server:
        yield server


def test_a_body_that_says_it_is_too_large(small: Live) -> None:
    answer = small.ask("POST", "/v1/completions", b" " * 2001)
    assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")


def raw(server: Live, data: bytes, more: bytes = b"") -> bytes:
    """What the server sends on a connection until it closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(data)
        received = b""
        try:
            if more:
                connection.sendall(more)
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        return received


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_a_body_that_does_not_say_so(small: Live) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    answer = raw(small, HEAD + b"transfer-encoding: chunked\r\n\r\n", chunk * 4)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come(small: Live) -> None:
    assert raw(small, HEAD + b"content-length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")


def headers(count: int) -> bytes:
    return b"".join(b"x-%d: %b\r\n" % (i, b"a" * 100) for i in range(count))


@pytest.mark.parametrize(
    "data",
    [
        HEAD + headers(60), HEAD + headers(60) + b"\r\n", HEAD + headers(1100) + b"\r\n",
        b"GET /" + b"a" * 8000, b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 8000, b"GET / HTTP/1.1\r\nx: " + b"a" * 120_000 + b"\r\n\r\n",
    ],
    ids=lambda data: f"{data[:16]!r} {len(data)} {data[-2:]!r}",
)  # fmt: skip
def test_headers_that_are_too_large(data: bytes, small: Live) -> None:
    """Whether they are finished or not."""
    assert raw(small, data).startswith(b"HTTP/1.1 431")
    assert small.ask("GET", "/version", headers={"x-long": "a" * 3000}).status == 200


def sent_until_closed(connection: socket.socket, data: bytes) -> int:
    """Bytes that a connection takes before the other side closes it."""
    for number in range(1000):
        try:
            connection.sendall(data)
        except ConnectionError:
            return number * len(data)
    return 1000 * len(data)


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("trailer", [b"x: " + b"a" * 2**20, headers(10_000)], ids=["one", "many"])
def test_trailers_without_end(trailer: bytes, small: Live) -> None:
    """The connection is closed on them; the data does not pile up."""
    with socket.create_connection(("127.0.0.1", small.port), timeout=5) as connection:
        connection.sendall(CHUNKED + b"2\r\n{}\r\n0\r\n")
        assert sent_until_closed(connection, trailer) < 24 * 2**20  # most of it in the system's buffers


def test_small_chunks_are_no_trailers(small: Live) -> None:
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 1, "user": "u" * 200}).encode()
    chunks = b"".join(b"1;%b\r\n%b\r\n" % (b"x" * 30, body[i : i + 1]) for i in range(len(body)))
    data = CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    assert raw(small, data, chunks + b"0\r\nx: y\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("more", [b"{", b"\r", b""])
def test_what_trickles_in_after_an_answer_keeps_no_connection(more: bytes, small: Live) -> None:
    """A body that was not wanted, and bytes that begin no request."""
    unread = b"POST /version HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", small.port), timeout=5) as connection:
        connection.sendall(unread if more != b"\r" else b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
        connection.sendall(more)
        while connection.recv(65536):
            pass
    assert time.monotonic() - start < 3


def test_headers_that_do_not_come(small: Live) -> None:
    assert raw(small, b"") == b""
    assert raw(small, HEAD) == b""


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"model":"\xff"}', b"[" * 1900, b'{"a":' * 300, b'{"model":"\\ud800"}',
        b'{"model":NaN}', b'{"model":1e999}', b'{"model":' + b"9" * 1900 + b"}", b'{"a":1}{"b":2}',
    ],
)  # fmt: skip
def test_bodies_that_are_none(body: bytes, small: Live) -> None:
    answer = small.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("media", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_other_content_types(media: str, small: Live) -> None:
    """What a web page can send without asking first is not accepted."""
    answer = small.ask("POST", "/v1/chat/completions", b"{}", {"content-type": media})
    assert answer.status == 415


# Counts


def test_choices_times_tokens(small: Live) -> None:
    assert small.complete(n=2, max_tokens=50).status == 200
    answer = small.complete(n=2, max_tokens=51)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "max_tokens")
    assert small.complete(prompt=["a", "b"], max_tokens=51).status == 400


def test_rows_of_prompts_count(small: Live) -> None:
    fields = {"echo": True, "logprobs": 1, "prompt": [[5] * 40] * 2}
    assert small.complete(**fields, max_tokens=10).status == 200
    assert small.complete(**fields, max_tokens=11).json()["error"]["param"] == "max_tokens"
    assert small.complete(**{**fields, "prompt": [[5] * 60] * 2}).json()["error"]["param"] == "echo"
    assert small.complete(**{**fields, "logprobs": None}, max_tokens=11).status == 200
    assert small.complete(logprobs=21).json()["error"]["param"] == "logprobs"


def test_prompts_that_are_too_long(small: Live) -> None:
    answer = small.complete(prompt=[5] * 300)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_too_many_prompts_and_messages(tiny: Live) -> None:
    assert tiny.complete(prompt=["a"] * 65).status == 400
    assert tiny.chat(messages=[{"role": "user", "content": ""}] * 1025).status == 400


def test_a_full_queue(small: Live) -> None:
    """Two run and two wait; the fifth is told when to come back, and nothing of it stays."""
    small.executor.pause = 0.03
    fields = {"prompt": "a", "max_tokens": 40, "ignore_eos": True}
    others = [small.connect("/v1/completions", fields) for _ in range(4)]
    until(lambda: small.service.engine.num_open == 4)
    assert small.ask("GET", "/health/ready").status == 503
    answer = small.complete()
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["code"] == "queue_full"
    assert small.metric("rusteeze_inference_requests_rejected_total") >= 1
    for other in others:
        other.close()
    until(small.is_idle)
    small.executor.pause = 0.0
    assert small.complete(n=5, max_tokens=2).status == 429  # more than there ever is room for
    assert small.complete().status == 200


# Templates


def test_a_template_is_never_taken_from_a_request(tiny: Live) -> None:
    plain = tiny.chat().json()["choices"]
    answer = tiny.chat(chat_template="{{ 1/0 }}", chat_template_kwargs={"messages": []})
    assert answer.json()["choices"] == plain
    assert "chat_template" in answer.headers["warning"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "{% for a in range(3000) %}{{ 'x' * 9000 }}{% endfor %}",
        "{{ raise_exception('not these') }}",
        "{{ messages.__class__.__mro__ }}{{ nothing.at.all }}",
    ],
)
def test_templates_are_bounded(template: str) -> None:
    with live() as server:
        object.__setattr__(server.service.model, "template", ChatTemplate(template, max_characters=10**6))
        answer = server.chat()
        assert answer.status == 400
        assert answer.json()["error"]["param"] == "messages"
        assert server.complete().status == 200


def test_a_model_without_a_template() -> None:
    with live() as server:
        object.__setattr__(server.service.model, "template", None)
        assert "no chat template" in server.chat().json()["error"]["message"]


# What errors tell


def test_errors_tell_nothing_of_the_inside(tiny: Live) -> None:
    def fail() -> None:
        raise RuntimeError(f"at {id(tiny):#x} in {__file__}")

    hostile: list[dict[str, Any]] = [
        {"messages": 1}, {"messages": [{}]}, {"model": {"__class__": 1}}, {"stop": [None]}, {"logit_bias": {"0x1": 1}},
        {"seed": 2**70}, {"messages": [{"role": "user", "content": [{"type": "file", "path": "/etc/passwd"}]}]},
    ]  # fmt: skip
    answers = [tiny.chat(**fields) for fields in hostile]
    answers.append(tiny.ask("GET", "/../../etc/passwd"))
    answers.append(tiny.ask("GET", "/v1/models/..%2f..%2fetc%2fpasswd"))
    tiny.executor.before_step = fail
    answers.append(tiny.chat())
    tiny.executor.before_step = lambda: None
    for answer in answers:
        assert answer.status >= 400
        assert not LEAK.search(answer.body), answer.body
        assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
    assert LEAK.search(b"at 0x7f0123456789")


def test_one_bad_request_among_good_ones(tiny: Live) -> None:
    """Of a request's sequences either all are submitted or none."""
    before = tiny.metric("rusteeze_inference_requests_started_total")
    assert tiny.complete(prompt=[[5], [10**6]]).status == 400
    assert tiny.metric("rusteeze_inference_requests_started_total") == before


def test_what_refuses_is_no_assertion() -> None:
    """Python leaves assertions out when it is told to optimise; these modules decide who and what gets in."""
    folder = Path(access.__file__).parent
    for name in ("access", "body", "connection", "layer", "limits", "prompts", "sampling_fields", "service"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], name
