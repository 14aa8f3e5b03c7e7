"""One thread that owns an engine: steps it while there is work, sleeps while there is none.

``submit`` and ``cancel`` may be called from any thread. Each output is shown to whoever listens as soon as it is made,
in the engine's thread; what is not taken there leaves through one callback a step (the server hands it to its event
loop). When the engine itself fails, the thread ends, says so once, and never pretends to be well.

    thread = EngineThread(engine, takes=send_at_once, deliver=inbox.extend, failed=on_failure)
    thread.start()
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rusteeze.runtime.interface import Asked, RequestOutput, Takes
from rusteeze.runtime.params import Grammar

_log = logging.getLogger(__name__)

IDLE_TICK_SECONDS = 0.25
"""How long an idle thread sleeps before it shows again that it lives."""


class SteppedEngine(Protocol):
    """What the thread needs of an engine: rusteeze.runtime.engine.SyncEngine has it."""

    @property
    def has_work(self) -> bool: ...

    @property
    def max_live(self) -> int | None: ...

    def submit_together(self, asked: Sequence[Asked], ids: Sequence[str]) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def step(self, takes: Takes) -> list[RequestOutput]: ...

    def compile_grammar(self, grammar: Grammar) -> None: ...


class EngineStopped(RuntimeError):
    """The engine's thread has ended, so nothing can be served any more."""


class EngineThread:
    """Runs ``engine``. ``takes`` is shown each output, ``deliver`` gets those of a step that it has not taken, in
    order; ``failed`` is called once when the engine raises. All run in the engine's thread and must not block."""

    def __init__(
        self, engine: SteppedEngine, takes: Takes,
        deliver: Callable[[list[RequestOutput]], None], failed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._engine = engine
        self._takes = takes
        self._deliver = deliver
        self._failed = failed
        self._wake = threading.Event()
        self._stopping = False
        self._ended = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._beat = time.monotonic()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are served. False before ``failed`` is called, so that none comes after it."""
        return self._thread.is_alive() and not self._ended

    @property
    def seconds_since_beat(self) -> float:
        """Age of the last step or idle tick: large when a step hangs."""
        return time.monotonic() - self._beat

    def submit(self, asked: Sequence[Asked], ids: Sequence[str]) -> None:
        """Queue requests, all or none. QueueFull, RequestError when one can never be served, EngineStopped
        when nothing can."""
        if not self.is_alive:
            raise EngineStopped("the engine has stopped")
        self._engine.submit_together(asked, ids)
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """End a request within one step, whatever its state; an unknown id is no error."""
        self._engine.cancel(request_id)
        self._wake.set()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread after the step that it is in; further calls do nothing."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException:
            self._ended = True
            _log.critical("the engine has failed; nothing is served any more", exc_info=True)
            self._failed()

    def _turn(self) -> None:
        """One step, or one nap."""
        self._beat = time.monotonic()
        if self._engine.has_work:
            left = self._engine.step(self._takes)
            if left:
                self._deliver(left)
            return
        self._wake.wait(IDLE_TICK_SECONDS)
        self._wake.clear()
