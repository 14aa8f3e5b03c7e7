"""Pieces of an answer that the engine's thread writes itself: in order, whole, and to nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import SimpleNamespace
from typing import Any

from live import PacedExecutor, live, until

from rusteeze.server.pieces import Pieces


def answering(transport: Any, **changes: bool) -> Any:
    """What uvicorn knows of an answer in chunks whose body has begun."""
    state = {"chunked_encoding": True, "response_complete": False, "disconnected": False, **changes}
    return SimpleNamespace(transport=transport, **state)


async def slow_client(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Transport, socket.socket]:
    """Our end of a connection that takes little at once, and the other end."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    return transport, theirs


def test_what_the_socket_does_not_take_is_written_by_the_loop() -> None:
    async def run() -> tuple[bytes, list[bool]]:
        loop = asyncio.get_running_loop()
        transport, theirs = await slow_client(loop)
        pieces = Pieces(answering(transport), loop)
        large, accepted = b"a" * 100_000, []
        accepted.append(pieces.write(b"early"))  # not open yet
        pieces.open()
        accepted.append(await asyncio.to_thread(pieces.write, large))
        accepted.append(await asyncio.to_thread(pieces.write, b"late"))  # the rest of the large one comes first
        pieces.open()
        accepted.append(pieces.write(b"late"))  # still
        received = b""
        while len(received) < len(large):
            received += await loop.sock_recv(theirs, 65536)
        received += await loop.sock_recv(theirs, 65536) if not received.endswith(b"\r\n") else b""
        await asyncio.sleep(0)
        pieces.open()
        accepted.append(await asyncio.to_thread(pieces.write, b"next"))
        received += await loop.sock_recv(theirs, 65536)
        transport.close()
        theirs.close()
        return received, accepted

    received, accepted = asyncio.run(run())
    assert accepted == [False, True, False, False, True]
    assert received == b"186a0\r\n" + b"a" * 100_000 + b"\r\n4\r\nnext\r\n"


def test_what_comes_behind_a_piece_waits_for_its_rest() -> None:
    """As when a shutdown ends a stream whose client is slow."""

    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        transport, theirs = await slow_client(loop)
        pieces = Pieces(answering(transport), loop)
        pieces.open()
        thread = threading.Thread(target=pieces.write, args=(b"a" * 100_000,))
        thread.start()
        thread.join()  # the loop has had no turn since
        pieces.close()
        transport.write(b"end")
        received = b""
        while not received.endswith(b"end"):
            received += await loop.sock_recv(theirs, 65536)
        transport.close()
        theirs.close()
        return received

    assert asyncio.run(run()) == b"186a0\r\n" + b"a" * 100_000 + b"\r\nend"


def test_nothing_is_written_once_closed_or_before_a_body() -> None:
    async def run() -> list[bool]:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        found = []
        for changes in ({"chunked_encoding": False}, {"response_complete": True}, {"disconnected": True}):
            pieces = Pieces(answering(transport, **changes), loop)
            pieces.open()
            found.append(pieces.write(b"x"))
        pieces = Pieces(answering(transport), loop)
        pieces.open()
        pieces.close()
        found.append(pieces.write(b"x"))
        transport.close()
        theirs.setblocking(False)
        await asyncio.sleep(0.01)
        assert theirs.recv(10) == b""  # closed, and nothing before
        theirs.close()
        return found

    assert asyncio.run(run()) == [False] * 4


def test_a_client_that_has_left_gets_nothing_and_its_sequences_end() -> None:
    """Also while many pieces are written: the socket's number may belong to the next client at once."""
    with live(PacedExecutor(pause=0.001)) as server:
        expected = server.complete(prompt="b", max_tokens=40, ignore_eos=True).json()["choices"][0]["text"]
        for _ in range(15):
            leaving = [
                server.connect("/v1/completions", {"prompt": f"a {i}", "max_tokens": 150, "ignore_eos": True, "stream": True})
                for i in range(4)
            ]
            until(lambda: server.service.engine.num_open >= 4)
            for connection in leaving:
                connection.recv(400)
                connection.close()
            events = server.complete(prompt="b", max_tokens=40, ignore_eos=True, stream=True).events()
            assert "".join(event["choices"][0]["text"] for event in events) == expected
        until(server.is_idle, seconds=2)
