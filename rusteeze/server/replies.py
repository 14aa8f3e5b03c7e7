"""Between the engine's thread and the event loop: who waits for the outputs of which request.

One HTTP request may be several sequences (choices, prompts); a *reply* gathers their outputs. All of
this runs in the event loop; only the hand-over of a step's outputs crosses threads, once a step.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from rusteeze.runtime.engine_thread import EngineThread, SteppedEngine
from rusteeze.runtime.interface import Asked, FinishReason, QueueFull, RequestOutput
from rusteeze.runtime.params import Grammar


class Observer(Protocol):
    """Told of everything that happens to sequences, for the metrics."""

    def started(self, request_id: str) -> None: ...
    def rejected(self, count: int) -> None: ...
    def output(self, output: RequestOutput) -> None: ...


class Reply:
    """Outputs of some sequences, each with its index, in the order in which they were produced.

    With ``each`` a reader is woken for every output, otherwise once, when all have finished. While it waits,
    an output is offered to ``direct`` first, which says whether it has passed it on.
    """

    def __init__(self, num_sequences: int, each: bool) -> None:
        self.num_open = num_sequences
        self._each = each
        self._outputs: deque[tuple[int, RequestOutput]] = deque()
        self._ready = asyncio.Event()
        self._waited_for = False
        self.direct: Callable[[int, RequestOutput], bool] = lambda index, output: False

    def put(self, index: int, output: RequestOutput) -> None:
        if self._waited_for and not self._outputs and self.direct(index, output):
            return
        self._outputs.append((index, output))
        self.num_open -= output.finish_reason is not None
        if self._each or not self.num_open:
            self._ready.set()

    async def take(self) -> list[tuple[int, RequestOutput]]:
        """All outputs that are there, after waiting for some; empty once all have been taken."""
        if not self._outputs and not self.num_open:
            return []
        self._waited_for = True
        try:
            await self._ready.wait()
        finally:
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
        self._thread = EngineThread(engine, self._deliver, self._failed)
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
        try:
            self._thread.submit(asked, ids)
        except QueueFull:
            self._observer.rejected(len(asked))
            raise
        for index, request_id in enumerate(ids):  # before any output: those come through this loop
            self._open[request_id] = (reply, index)
            self._observer.started(request_id)
        return reply, ids

    def cancel(self, ids: Sequence[str]) -> None:
        """End the sequences within a step. Those that have ended, or never were, are left alone."""
        for request_id in ids:
            if request_id in self._open:
                self._thread.cancel(request_id)

    def cancel_all(self) -> None:
        self.cancel(list(self._open))

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, outputs)

    def _dispatch(self, outputs: list[RequestOutput]) -> None:
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
        """The engine is gone: nobody waits for ever."""
        self._dispatch([
            RequestOutput(id, finish_reason=FinishReason.ERROR, error="the engine has failed")
            for id in self._open
        ])  # fmt: skip
