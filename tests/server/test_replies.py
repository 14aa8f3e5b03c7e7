"""What comes past the queue never comes before what waits in it."""

from __future__ import annotations

import asyncio

from rusteeze.runtime.interface import FinishReason, RequestOutput
from rusteeze.server.replies import Reply


def test_an_output_goes_past_the_queue_only_while_it_is_empty_and_waited_for() -> None:
    passed: list[str] = []
    willing = True

    def direct(index: int, output: RequestOutput) -> bool:
        if willing and output.finish_reason is None:
            passed.append(output.text)
        return willing and output.finish_reason is None

    async def run() -> list[list[str]]:
        nonlocal willing
        reply, taken = Reply(1, each=True), []
        reply.direct = direct
        reply.put(0, RequestOutput("r", "a"))  # nobody waits yet
        taken.append(await reply.take())
        waiting = asyncio.create_task(reply.take())
        await asyncio.sleep(0)
        reply.put(0, RequestOutput("r", "b"))
        willing = False
        reply.put(0, RequestOutput("r", "c"))
        willing = True
        reply.put(0, RequestOutput("r", "d"))  # behind c, which waits
        reply.put(0, RequestOutput("r", "e", finish_reason=FinishReason.STOP))
        taken.append(await waiting)
        taken.append(await reply.take())
        return [[output.text for _, output in batch] for batch in taken]

    assert asyncio.run(run()) == [["a"], ["c", "d", "e"], []]
    assert passed == ["b"]


def test_a_reader_that_was_cancelled_is_passed_by_no_more() -> None:
    async def run() -> list[str]:
        reply, passed = Reply(1, each=True), []
        reply.direct = lambda index, output: bool(passed.append(output.text)) or True
        waiting = asyncio.create_task(reply.take())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        reply.put(0, RequestOutput("r", "late"))
        return passed

    assert asyncio.run(run()) == []
