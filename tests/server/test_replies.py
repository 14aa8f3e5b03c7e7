"""What the engine's thread deals with itself never comes before what is on its way through the event loop."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from rusteeze.runtime.interface import FinishReason, RequestOutput
from rusteeze.server.replies import Reply


def output(text: str, last: bool = False) -> RequestOutput:
    return RequestOutput("r", text, finish_reason=FinishReason.STOP if last else None)


def test_an_output_goes_past_the_queue_only_while_it_is_empty_and_waited_for() -> None:
    passed: list[str] = []
    willing = True

    def direct(index: int, output: RequestOutput) -> bool:
        if willing:
            passed.append(output.text)
        return willing

    async def run() -> list[list[str]]:
        nonlocal willing
        reply, taken = Reply(1, each=True), []

        def step(text: str, last: bool = False) -> None:
            if not reply.offer(0, output(text, last)):
                reply.put(0, output(text, last))

        reply.direct = direct
        step("a")  # nobody waits yet
        taken.append(await reply.take())
        waiting = asyncio.create_task(reply.take())
        await asyncio.sleep(0)
        step("b")
        willing = False
        step("c")
        willing = True
        step("d")  # behind c, which waits
        step("e", last=True)
        taken.append(await waiting)
        taken.append(await reply.take())
        return [[output.text for _, output in batch] for batch in taken]

    assert asyncio.run(run()) == [["a"], ["c", "d", "e"], []]
    assert passed == ["b"]


def test_what_was_on_its_way_before_the_reader_came_is_not_overtaken() -> None:
    async def run() -> list[str]:
        reply, found = Reply(1, each=True), []
        reply.direct = lambda index, output: not found.append(output.text)
        first, second = output("first"), output("second")
        assert not reply.offer(0, first)  # nobody waits yet
        waiting = asyncio.create_task(reply.take())
        await asyncio.sleep(0)
        reply.put(0, first)
        assert not reply.offer(0, second)  # the reader has been woken and has had no turn
        reply.put(0, second)
        return found + [output.text for _, output in await waiting]

    assert asyncio.run(run()) == ["first", "second"]


def test_a_reader_that_was_cancelled_is_passed_by_no_more() -> None:
    async def run() -> list[str]:
        reply, passed = Reply(1, each=True), []
        reply.direct = lambda index, output: bool(passed.append(output.text)) or True
        waiting = asyncio.create_task(reply.take())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not reply.offer(0, output("late"))
        return passed

    assert asyncio.run(run()) == []


@pytest.mark.parametrize("each", [False, True])
def test_two_threads_keep_the_order(each: bool) -> None:
    """The engine's thread makes outputs at random moments, and those that it hands over come late."""
    count, draw, found = 4000, random.Random(7), []

    async def run() -> None:
        loop, reply = asyncio.get_running_loop(), Reply(1, each)
        reply.direct = lambda index, output: draw.random() < 0.9 and not found.append(output.text)

        def engine() -> None:
            for number in range(count):
                made = output(str(number), last=number == count - 1)
                if not reply.offer(0, made):
                    loop.call_soon_threadsafe(reply.put, 0, made)
                if draw.random() < 0.02:
                    time.sleep(1e-4)

        thread = threading.Thread(target=engine)
        thread.start()
        while batch := await reply.take():
            found.extend(output.text for _, output in batch)
            await asyncio.sleep(0)
        thread.join()

    asyncio.run(run())
    assert found == [str(number) for number in range(count)]
