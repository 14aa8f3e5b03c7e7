"""The protocol between run.py and an engine: one line of JSON in, one out, until the input ends.

In: ``{"prompts": [[token id, ...], ...], "new": tokens to generate for each}``. Out: ``{"seconds",
"tail_tokens", "tail_seconds"}``: the time from all prompts to the last token of all sequences, and how
many of the tokens came, in which time, after every sequence had its first one. An engine's script is
started as ``PYTHON SCRIPT MODEL THREADS``, or with ``TEXT NEW`` behind it to complete a text by itself.
Knows no engine; standard library only, since it runs in foreign environments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator

Tokens = list[tuple[int, int]]
"""What one step of an engine gave: (number of the sequence, token)."""
Generate = Callable[[list[list[int]], int], Iterator[Tokens]]


def answer(generate: Generate, channel: int) -> None:
    """Serve stdin, answers to the descriptor ``channel``. ``generate`` gives exactly ``new`` greedy
    tokens for every prompt, step by step (else RuntimeError)."""
    with os.fdopen(channel, "w") as out:
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(timed(generate, asked["prompts"], asked["new"])), file=out, flush=True)


def timed(generate: Generate, prompts: list[list[int]], new: int) -> dict[str, float]:
    counts = [0] * len(prompts)
    start = now = time.perf_counter()
    first, before, missing = start, 0, len(prompts)
    for tokens in generate(prompts, new):
        now = time.perf_counter()
        for sequence, _ in tokens:
            missing -= not counts[sequence]
            counts[sequence] += 1
        if not missing and not before:
            first, before = now, sum(counts)
    if counts != [new] * len(prompts):
        raise RuntimeError(f"wanted {new} tokens for each prompt")
    tail = {"tail_tokens": sum(counts) - before, "tail_seconds": now - first}
    return {"seconds": now - start, **tail}


def own_channel() -> int:
    """Keep stdout for answers: what an engine prints from now on goes to stderr."""
    channel = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel
