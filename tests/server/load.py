"""Many clients for a while, some of which leave: is every answer the right one, and what is left behind?

    PYTHONPATH=tests:tests/server python tests/server/load.py MODEL.rz --seconds 180

Greedy answers do not depend on company, so each prompt's answer is asked for once alone and every later one
must be the same text. Prints what was found as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from server_process import Served, serve

CLIENTS = 64
LEAVING = 0.1
PROMPTS = 48
GRAMMARS = (
    {"type": "regex", "regex": "[a-z ]{1,40}"},
    {"type": "json_object"},
    {"type": "lark", "grammar": 'start: ("a" | "bc")+ "."'},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}},
)
"""A quarter of the questions asks for one of these formats."""
LONGEST_PROMPT, LONGEST_ANSWER = 400, 48
WARM_UP = 0.3
"""Share of the time after which memory must not grow any more."""


@dataclass
class Found:
    """Counts and times (seconds) of one run."""

    answered: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds, requests until then, bytes."""
    metrics: dict[str, float] = field(default_factory=dict)

    def bytes_per_request(self) -> float:
        """Growth of the process once it is warm: the slope of a line through the samples."""
        warm = self.memory[int(len(self.memory) * WARM_UP) :]
        return statistics.linear_regression([m[1] for m in warm], [m[2] for m in warm]).slope

    def summary(self) -> dict[str, Any]:
        def percentiles(values: list[float]) -> dict[str, float]:
            cuts = statistics.quantiles(values, n=100)
            return {"p50_ms": round(cuts[49] * 1e3, 1), "p99_ms": round(cuts[98] * 1e3, 1)}

        return {
            "answered": self.answered, "left": self.left, "wrong": len(self.wrong),
            "time_to_first_token": percentiles(self.first), "inter_token": percentiles(self.between),
            "bytes_per_request": round(self.bytes_per_request(), 1),
            "memory_mib": [round(m[2] / 2**20) for m in (self.memory[0], self.memory[-1])],
        }  # fmt: skip


@dataclass
class Question:
    body: bytes
    stream: bool
    answer: str = ""


def questions(model: str, draw: random.Random) -> list[Question]:
    """Prompts of mixed lengths, half of them streamed, some with a format that the answer keeps to."""
    made = []
    for number in range(PROMPTS):
        ids = [draw.randrange(1000, 40_000) for _ in range(draw.randint(1, LONGEST_PROMPT))]
        fields = {
            "model": model, "prompt": ids, "max_tokens": draw.randint(1, LONGEST_ANSWER), "temperature": 0,
            "ignore_eos": True, "stream": number % 2 == 0,
        }  # fmt: skip
        if number % 8 in (1, 2):  # whole and streamed
            fields |= {"response_format": GRAMMARS[number // 8 % len(GRAMMARS)], "ignore_eos": False}
        made.append(Question(json.dumps(fields).encode(), number % 2 == 0))
    return made


async def ask(port: int, question: Question, found: Found, leave_after: float | None) -> str | None:
    """The text of the answer; None when the client left before it was there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
    start = time.perf_counter()
    writer.write(f"{head}content-length: {len(question.body)}\r\n\r\n".encode() + question.body)
    try:
        reading = read_stream(reader, start, found) if question.stream else read_whole(reader)
        return await asyncio.wait_for(reading, leave_after)
    except TimeoutError:
        return None
    finally:
        writer.close()


async def read_whole(reader: asyncio.StreamReader) -> str:
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return str(json.loads(body)["choices"][0]["text"])


async def read_stream(reader: asyncio.StreamReader, start: float, found: Found) -> str:
    text, before = "", None
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        choice = json.loads(line[6:])["choices"][0]
        text += choice["text"]
        now = time.perf_counter()
        (found.first if before is None else found.between).append(now - (before or start))
        before = now
        if choice["finish_reason"] is not None:
            rest = await reader.read(-1)
            assert b"data: [DONE]" in rest, rest
            return text
    raise AssertionError("the stream ended without a finish reason")


async def client(port: int, asked: list[Question], found: Found, end: float, seed: int) -> None:
    draw = random.Random(seed)
    while time.monotonic() < end:
        question = draw.choice(asked)
        leave_after = draw.random() if draw.random() < LEAVING else None
        text = await ask(port, question, found, leave_after)
        if text is None:
            found.left += 1
            continue
        found.answered += 1
        if text != question.answer:
            found.wrong.append(f"{text!r}, not {question.answer!r}")


async def watch(pid: int, found: Found, end: float) -> None:
    while time.monotonic() < end:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found.memory.append((time.monotonic(), found.answered + found.left, pages * 4096))
        await asyncio.sleep(0.5)


async def run(served: Served, seconds: float) -> Found:
    port = int(served.url.rpartition(":")[2])
    asked = questions(served.model, random.Random(11))
    for question in asked:
        question.answer = await ask(port, question, Found(), None) or ""
    found = Found()
    end = time.monotonic() + seconds
    await asyncio.gather(
        watch(served.process.pid, found, end), *(client(port, asked, found, end, i) for i in range(CLIENTS))
    )
    await asyncio.sleep(0.5)
    found.metrics = values(served)
    return found


def values(served: Served) -> dict[str, float]:
    families = text_string_to_metric_families(served.text("/metrics"))
    samples = [s for family in families for s in family.samples if "le" not in s.labels]
    return {s.name + "".join(f" {v}" for k, v in s.labels.items() if k == "status"): s.value for s in samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=180)
    options = parser.parse_args()
    with serve(options.artifact) as served:
        found = asyncio.run(run(served, options.seconds))
    print(json.dumps(found.summary() | {"metrics": found.metrics}, indent=1))


if __name__ == "__main__":
    main()
