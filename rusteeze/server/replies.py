"""Between the engine's thread and the event loop: who waits for the outputs of which request.

One HTTP request may be several sequences (choices, prompts); a *reply* gathers their outputs. Nearly all outputs are
dealt with in the engine's thread: written to the client, or kept until the answer is whole. The others are handed to
the event loop, once a step, where everything else of this runs.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from rusteeze.runtime.engine_thread import EngineThread, SteppedEngine
from rusteeze.runtime.interface import Asked, FinishReason, QueueFull, RequestOutput
from rusteeze.runtime.params import Grammar


class Observer(Protocol):
    """Told of everything that happens to sequences, for the metrics: of their outputs in both threads."""

    def started(self, request_id: str) -> None: ...
    def rejected(self, count: int) -> None: ...
    def output(self, output: RequestOutput) -> None: ...


class Reply:
    """Outputs of some sequences, each with its index; those of one sequence in the order in which they were made.

    Every output is first offered in the engine's thread, and only what is not taken there is put in the event loop,
    since waking it costs more than most outputs are worth. With ``each`` a reader is woken for every output; while it
    waits and nothing is on its way to it, ``direct``, which must not raise, may pass an output on. Otherwise it is woken once, when all have
    finished.
    """

    def __init__(self, num_sequences: int, each: bool) -> None:
        self.num_open = num_sequences
        self._each = each
        self._outputs: deque[tuple[int, RequestOutput]] = deque()
        self._ready = asyncio.Event()
        self._waited_for = False
        self._num_on_the_way = 0
        self._lock = threading.Lock()  # what both threads change
        self.direct: Callable[[int, RequestOutput], bool] = lambda index, output: False

    def offer(self, index: int, output: RequestOutput) -> bool:
        """Take an output in the engine's thread; False when it has to be put in the event loop."""
        with self._lock:
            if output.finish_reason is None and not self._num_on_the_way and self._takes(index, output):
                return True
            self._num_on_the_way += 1
            return False

    def _takes(self, index: int, output: RequestOutput) -> bool:
        if self._each:
            return self._waited_for and self.direct(index, output)
        self._outputs.append((index, output))
        return True

    def put(self, index: int, output: RequestOutput) -> None:
        """Take, in the event loop, an output that was refused when it was offered."""
        with self._lock:
            self._num_on_the_way -= 1
            self._outputs.append((index, output))
            self._waited_for = False  # the reader is woken, and comes back for more
        self.num_open -= output.finish_reason is not None
        if self._each or not self.num_open:
            self._ready.set()

    async def take(self) -> list[tuple[int, RequestOutput]]:
        """All outputs that are there, after waiting for some; empty once all have been taken."""
        if not self._outputs and not self.num_open:
            return []
        self._waited_for = not self._outputs
        try:
            await self._ready.wait()
        finally:
            with self._lock:
                self._waited_for = False
        self._ready.clear()
        taken = list(self._outputs)
        self._outputs.clear()
        return taken


class AsyncEngine:
    """An engine thread as the event loop sees it."""

    def __init__(self, engine: SteppedEngine, observer: Observer) -> None:
        self._max_live = engine.max_live
        self._observer = observer
        self._compile_grammar = engine.compile_grammar
        self._thread = EngineThread(engine, self._takes, self._deliver, self._failed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[str, tuple[Reply, int]] = {}

    def start(self) -> None:
        """Begin to serve; called in the event loop that will read the replies."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive

    @property
    def seconds_since_beat(self) -> float:
        return self._thread.seconds_since_beat

    @property
    def num_open(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._open)

    @property
    def is_full(self) -> bool:
        return self._max_live is not None and self.num_open >= self._max_live

    def compile_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar; for threads that may wait. RequestError says what is wrong, and where."""
        self._compile_grammar(grammar)

    def submit(self, asked: Sequence[Asked], each: bool) -> tuple[Reply, list[str]]:
        """Submit sequences together, or none of them; their reply and ids.

        QueueFull, RequestError (one can never be served) or EngineStopped.
        """
        reply, ids = Reply(len(asked), each), [uuid.uuid4().hex for _ in asked]
        entries = {request_id: (reply, index) for index, request_id in enumerate(ids)}
        self._open.update(entries)  # before any output
        try:
            self._thread.submit(asked, ids)
        except BaseException as error:
            for request_id in ids:
                del self._open[request_id]
            if isinstance(error, QueueFull):
                self._observer.rejected(len(asked))
            raise
        for request_id in ids:  # before any end: those come through this loop
            self._observer.started(request_id)
        return reply, ids

    def cancel(self, ids: Sequence[str]) -> None:
        """End the sequences within a step. Those that have ended, or never were, are left alone."""
        for request_id in ids:
            if request_id in self._open:
                self._thread.cancel(request_id)

    def cancel_all(self) -> None:
        self.cancel(list(self._open))

    def _takes(self, output: RequestOutput) -> bool:
        """Whether an output is dealt with in the engine's thread, where this is called as soon as it is made."""
        entry = self._open.get(output.request_id)
        if entry is None:
            return True
        reply, index = entry
        if not reply.offer(index, output):
            return False
        self._observer.output(output)
        return True

    def _deliver(self, left: list[RequestOutput]) -> None:
        """What is left of a step's outputs, in the engine's thread."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, left)

    def _dispatch(self, outputs: list[RequestOutput]) -> None:
        """The same, in the event loop."""
        for output in outputs:
            entry = self._open.get(output.request_id)
            if entry is None:
                continue
            if output.finish_reason is not None:
                del self._open[output.request_id]
            self._observer.output(output)
            reply, index = entry
            reply.put(index, output)

    def _failed(self) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_all)

    def _end_all(self) -> None:
        """The engine is gone, and its thread: nobody waits for ever."""
        ends = [
            RequestOutput(id, finish_reason=FinishReason.ERROR, error="the engine has failed")
            for id in self._open
        ]  # fmt: skip
        self._dispatch([end for end in ends if not self._takes(end)])
