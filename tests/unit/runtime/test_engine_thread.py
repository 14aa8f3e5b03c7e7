from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from mock_executor import MockExecutor, greedy_tokens

from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.engine_thread import EngineStopped, EngineThread
from rusteeze.runtime.interface import RequestError, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=6)


class Inbox:
    """Collects what the thread delivers."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1

    def tokens(self, request_id: str) -> list[int]:
        return [t for o in self.outputs if o.request_id == request_id for t in o.token_ids]

    def ended(self) -> set[str]:
        return {o.request_id for o in self.outputs if o.finish_reason is not None}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def started(engine: SyncEngine) -> tuple[EngineThread, Inbox]:
    inbox = Inbox()
    thread = EngineThread(engine, lambda output: False, inbox.outputs.extend, inbox.failed)
    thread.start()
    return thread, inbox


def test_requests_from_many_threads() -> None:
    thread, inbox = started(SyncEngine(MockExecutor()))
    prompts = {f"{i}": [i + 1, i + 2] for i in range(24)}
    workers = [
        threading.Thread(target=thread.submit, args=([(prompt, GREEDY)], [name]))
        for name, prompt in prompts.items()
    ]
    for worker in workers:
        worker.start()
    until(lambda: inbox.ended() == set(prompts))
    assert {n: inbox.tokens(n) for n in prompts} == {n: greedy_tokens(p, 6) for n, p in prompts.items()}
    thread.stop()
    assert not thread.is_alive
    assert inbox.failures == 0


def test_cancelling_and_unknown_ids() -> None:
    thread, inbox = started(SyncEngine(MockExecutor()))
    thread.submit([([1, 2], SamplingParams(temperature=0, max_tokens=200))], ["long"])
    thread.cancel("nobody")
    thread.cancel("long")
    thread.cancel("long")
    until(lambda: inbox.ended() == {"long"})
    thread.stop()


def test_a_refusal_reaches_the_caller() -> None:
    thread, _ = started(SyncEngine(MockExecutor()))
    with pytest.raises(RequestError, match="no tokens"):
        thread.submit([([], GREEDY)], ["empty"])
    assert thread.is_alive
    thread.stop()


def test_an_idle_thread_shows_that_it_lives() -> None:
    thread, _ = started(SyncEngine(MockExecutor()))
    time.sleep(0.6)
    assert thread.seconds_since_beat < 0.5
    thread.stop()


def test_a_failing_engine_ends_the_thread_loudly(caplog: pytest.LogCaptureFixture) -> None:
    engine = SyncEngine(MockExecutor())
    thread, inbox = started(engine)
    engine.scheduler.schedule = None  # type: ignore[method-assign, assignment]
    thread.submit([([1], GREEDY)], ["a"])
    until(lambda: not thread.is_alive)
    assert inbox.failures == 1
    assert "the engine has failed" in caplog.text
    with pytest.raises(EngineStopped):
        thread.submit([([1], GREEDY)], ["b"])


def test_nothing_is_taken_once_the_failure_is_told() -> None:
    """What came after that would wait for ever: nobody ends it."""
    refused = []

    def failed() -> None:
        assert not thread.is_alive
        with pytest.raises(EngineStopped):
            thread.submit([([1], GREEDY)], ["late"])
        refused.append(True)

    engine = SyncEngine(MockExecutor())
    thread = EngineThread(engine, lambda output: False, lambda outputs: None, failed)
    engine.scheduler.schedule = None  # type: ignore[method-assign, assignment]
    thread.start()
    thread.submit([([1], GREEDY)], ["a"])
    until(lambda: bool(refused))


def test_outputs_are_shown_as_they_are_made_and_only_what_is_left_is_delivered() -> None:
    engine, taken, inbox = SyncEngine(MockExecutor()), Inbox(), Inbox()

    def takes(output: RequestOutput) -> bool:
        if output.finish_reason is not None:
            return False
        taken.outputs.append(output)
        return True

    thread = EngineThread(engine, takes, inbox.outputs.extend, inbox.failed)
    thread.start()
    thread.submit([([5, 6], GREEDY), ([7], GREEDY)], ["a", "b"])
    until(lambda: inbox.ended() == {"a", "b"})
    thread.stop()
    for name, prompt in (("a", [5, 6]), ("b", [7])):
        assert taken.tokens(name) + inbox.tokens(name) == greedy_tokens(prompt, 6)
        assert len(inbox.tokens(name)) == 1
