"""The wall clock may jump, in the middle of anything: nothing but dates is read from it."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from live import PacedExecutor, live

import rusteeze
from rusteeze.server.limits import Limits

PACKAGE = Path(rusteeze.__file__).parent
DATES = {"server/boot.py", "server/identity.py"}
"""What says when something was made."""
P = "rusteeze_inference_"


@pytest.mark.parametrize("jump", [-(10.0**8), 10.0**8])
def test_a_jump_changes_nothing(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(stall_seconds=5, body_seconds=5, header_seconds=5, write_seconds=5)
    with live(PacedExecutor(), limits=limits) as server:
        before = server.complete(stream=True, max_tokens=30).body
        true_time, steps = time.time, iter(range(10**6))

        def jump_once() -> None:
            if next(steps) == 5:
                monkeypatch.setattr(time, "time", lambda: true_time() + jump)

        server.executor.before_step = jump_once
        during = server.complete(stream=True, max_tokens=30)
        assert time.time() - true_time() == pytest.approx(jump, abs=60)
        assert joined(during.body) == joined(before)
        assert server.ask("GET", "/health/live").status == 200
        assert server.ask("GET", "/health/ready").status == 200
        answer = server.complete()
        assert answer.status == 200
        assert answer.json()["created"] == pytest.approx(true_time() + jump, abs=60)
        for name in ("time_to_first_token", "queue_time", "inter_token_latency"):
            assert 0 <= server.metric(f"{P}{name}_seconds_sum") < 60
        assert 0 < server.metric(f"{P}tokens_per_second") < 10**6


def joined(body: bytes) -> list[bytes]:
    """The pieces of text of a stream of completions."""
    return [line.partition(b'"text":')[2].partition(b'"logprobs"')[0] for line in body.split(b"\n\n")]


def test_only_dates_come_from_the_wall_clock() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for room in ("runtime", "server")
        for path in (PACKAGE / room).rglob("*.py")
        if any(_reads_wall_clock(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert found == DATES


def _reads_wall_clock(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.time", "time.time_ns"}
