"""Rusteeze behind the protocol of answering.py. The artifact of MODEL must be in the cache."""

from __future__ import annotations

import sys

from answering import answer

from rusteeze.cli.artifacts import artifact_for
from rusteeze.config import CompileOptions
from rusteeze.runtime import llm
from rusteeze.runtime.interface import SamplingParams


def main() -> None:
    engine = llm.load(artifact_for(sys.argv[1], CompileOptions()), int(sys.argv[2])).engine

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        return [list(done.token_ids) for done in engine.generate(prompts, params)]

    answer(generate)


if __name__ == "__main__":
    main()
