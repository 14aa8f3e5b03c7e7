"""The protocol between run.py and a provider: one line of JSON in, one out, until the input ends.

In: ``{"prompts": [[token id, ...], ...], "new": tokens to generate for each}``. Out: ``{"seconds": ...}``,
the time from all prompts to the last token of all sequences. A provider's script is started as
``PYTHON SCRIPT MODEL THREADS``. Knows no engine; standard library only, since it runs in foreign environments.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[list[int]]]


def answer(generate: Generate) -> None:
    """Serve stdin. ``generate`` gives exactly ``new`` greedy tokens for every prompt (else RuntimeError)."""
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        answers = generate(asked["prompts"], asked["new"])
        seconds = time.perf_counter() - start
        if [len(tokens) for tokens in answers] != [asked["new"]] * len(asked["prompts"]):
            raise RuntimeError(f"wanted {asked['new']} tokens for each prompt")
        print(json.dumps({"seconds": seconds}), flush=True)
