"""Runs the application on a socket until it is told to stop, and lets it finish what it has begun.

The first SIGTERM or SIGINT begins the drain: not ready, new requests get 503, those in flight may finish for
``drain_seconds``; what is left then ends with an error. The second signal ends everything with an error at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from rusteeze.errors import UserError
from rusteeze.server.connection import LimitedProtocol
from rusteeze.server.service import Service

_log = logging.getLogger(__name__)

LAST_SECONDS = 5
"""How long answers that were cut off may take to be sent."""
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048


class DrainingServer(uvicorn.Server):
    """uvicorn with a drain in front of its own shutdown."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_until: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut_off)
            return
        self._service.draining = True
        self._drain_until = time.monotonic() + self._service.limits.drain_seconds

    def _cut_off(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None:
            late = time.monotonic() >= self._drain_until
            if late:
                self._service.engine.cancel_all()
            # The tasks are the requests that have begun, also those whose body is still being read.
            self.should_exit = self.should_exit or late or not self.server_state.tasks
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but an ordered shutdown is no death by signal: the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {sig: signal.signal(sig, self.handle_exit) for sig in signals}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def bind(host: str, port: int) -> socket.socket:
    """The one socket that is ever listened on. UserError when the address is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        # socket adds the address to the system's own words
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UserError(f"cannot listen on {host}:{port}: {reason}; see --host and --port") from error
    # Connections inherit it. asyncio sets it only on sockets whose protocol number is named, which accepted ones'
    # is not; without it the first tokens of a stream wait 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


def server_config(app: Starlette, service: Service) -> uvicorn.Config:
    """uvicorn's settings: nothing of it is left to the environment or to headers."""
    protocol: Any = partial(LimitedProtocol, service.limits)
    return uvicorn.Config(
        app, http=protocol, ws="none", lifespan="on", log_config=None,
        access_log=False, server_header=False, proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=LAST_SECONDS,
    )  # fmt: skip


def run(app: Starlette, service: Service, listener: socket.socket) -> None:
    """Serve until a signal. Returns once everything has ended."""
    DrainingServer(server_config(app, service), service).run(sockets=[listener])
