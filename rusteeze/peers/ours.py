"""Rusteeze behind the protocol of answering.py: ``ours.py ARTIFACT THREADS``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rusteeze.peers.answering import Tokens, answer, own_channel
from rusteeze.runtime import llm
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.interface import SamplingParams

# For the longest contexts of 32 sequences; backed by memory only where it is used.
KV_BYTES = 8 << 30
# The second request of "decode N" repeats the prompts of the first, which nobody may profit from.
CONFIG = EngineConfig(prefix_caching=False)


def main() -> None:
    channel = own_channel()
    engine = llm.load(Path(sys.argv[1]), int(sys.argv[2]), KV_BYTES, CONFIG).engine

    def generate(prompts: list[list[int]], new: int) -> Iterator[Tokens]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        number = {engine.submit(prompt, params): i for i, prompt in enumerate(prompts)}
        while engine.has_work:
            yield [(number[o.request_id], t) for o in engine.step() for t in o.token_ids]

    answer(generate, channel)


if __name__ == "__main__":
    main()
