"""Live, ready and neither: what the health routes say when the engine works, waits, hangs or dies."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest
from live import Live, PacedExecutor, live, until

from rusteeze.server.limits import Limits

PATHS = ("/health", "/health/live", "/health/ready")


def statuses(server: Live) -> list[int]:
    return [server.ask("GET", path).status for path in PATHS]


def test_well(tiny: Live) -> None:
    assert statuses(tiny) == [200, 200, 200]
    assert tiny.ask("GET", "/health").json() == {"status": "ok"}
    assert set(tiny.ask("GET", "/version").json()) == {"version"}


def test_a_long_step_is_no_sickness() -> None:
    with live(PacedExecutor(pause=0.2)) as server:
        connection = server.connect("/v1/completions", {"prompt": "a", "max_tokens": 2})
        until(lambda: server.engine.scheduler.num_running == 1)
        start = time.monotonic()
        assert statuses(server) == [200, 200, 200]
        assert time.monotonic() - start < 0.2
        connection.close()


def test_a_step_that_hangs_is_one() -> None:
    release = threading.Event()
    with live(PacedExecutor(), limits=Limits(stall_seconds=0.4)) as server:
        assert statuses(server) == [200, 200, 200]
        server.executor.before_step = lambda: release.wait(10) and None
        connection = server.connect("/v1/completions", {"prompt": "a", "max_tokens": 2})
        until(lambda: statuses(server) == [503, 503, 503], seconds=2)
        assert server.ask("GET", "/health/live").json() == {"status": "the engine does not move"}
        release.set()
        until(lambda: statuses(server) == [200, 200, 200], seconds=2)
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_noticed_and_nobody_waits_for_ever(stream: bool) -> None:
    with live(PacedExecutor(pause=0.05)) as server:
        fields = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 100, "stream": stream}
        connection = server.connect("/v1/chat/completions", fields)
        until(lambda: server.engine.scheduler.num_running == 1)
        server.engine.scheduler.schedule = None  # type: ignore[method-assign, assignment]
        start = time.monotonic()
        until(lambda: server.ask("GET", "/health/ready").status == 503, seconds=2)
        assert time.monotonic() - start < 1
        assert server.ask("GET", "/health/live").status == 503
        answer = b""
        while data := connection.recv(65536):
            answer += data
            if b"internal_error" in answer:
                break
        assert b"internal_error" in answer
        refused = server.chat()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert server.metric("rusteeze_inference_requests_active") == 0


def test_an_engine_thread_that_is_killed() -> None:
    others = set(threading.enumerate())
    with live() as server:
        (thread,) = [t for t in threading.enumerate() if t.name == "engine" and t not in others]
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
        until(lambda: server.ask("GET", "/health/ready").status == 503, seconds=1)
