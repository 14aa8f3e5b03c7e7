"""Reading the outputs of one request from an engine that runs in the reader's own thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rusteeze.runtime.interface import RequestOutput


class Mailbox:
    """The outputs of one request as an iterator; asking for one that is not there runs the engine.

    ``step`` runs the engine once; ``close`` is called once, after the last output or earlier.
    """

    def __init__(self, step: Callable[[], object], close: Callable[[], None]) -> None:
        self._outputs: deque[RequestOutput] = deque()
        self._step = step
        self._close: Callable[[], None] | None = close

    def put(self, output: RequestOutput) -> None:
        self._outputs.append(output)

    def __iter__(self) -> Mailbox:
        return self

    def __next__(self) -> RequestOutput:
        if self._close is None:
            raise StopIteration
        while not self._outputs:
            self._step()
        output = self._outputs.popleft()
        if output.finish_reason is not None:
            self.close()
        return output

    def close(self) -> None:
        """Cancel the request if it has not finished; further calls do nothing."""
        if self._close is not None:
            close, self._close = self._close, None
            close()
