"""How much of a decode step is not the model: scheduling, building the batch, sampling, text.

    .venv/bin/python benchmarks/host_share.py MODEL [--sequences 64] [--threads N] [--temperature 0]

All sequences decode together; a step counts when each of them got a token. Printed are the medians of a
step, of its call of the executor, and the share of the step that is neither.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from machine import cores

from rusteeze.cli.artifacts import artifact_for
from rusteeze.config import CompileOptions
from rusteeze.peers.rates import PROMPT_TOKENS, prompts
from rusteeze.runtime import llm
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.interface import SamplingParams

WARM_UP_STEPS = 8


class Timed:
    """An executor that remembers how long its last call took."""

    def __init__(self, executor: CpuExecutor) -> None:
        self._executor = executor
        self.num_blocks, self.block_size = executor.num_blocks, executor.block_size
        self.max_batched_tokens = executor.max_batched_tokens
        self.max_model_len, self.vocab_size = executor.max_model_len, executor.vocab_size
        self.seconds = 0.0

    def execute(self, batch: Batch) -> np.ndarray:
        start = time.perf_counter()
        logits = self._executor.execute(batch)
        self.seconds = time.perf_counter() - start
        return logits

    def best_tokens(self) -> np.ndarray:
        return self._executor.best_tokens()


def main() -> None:
    asked = arguments()
    model = llm.load(artifact_for(asked.model, CompileOptions()), asked.threads)
    timed = Timed(model.executor)
    engine = SyncEngine(timed, model.tokenizer)
    params = SamplingParams(
        temperature=asked.temperature, top_p=0.95, seed=1, max_tokens=asked.new, ignore_eos=True
    )
    for prompt in prompts("host share", asked.sequences, PROMPT_TOKENS, seed=1):
        engine.submit(prompt, params)
    steps, calls = [], []
    while engine.has_work:
        start = time.perf_counter()
        outputs = engine.step()
        seconds = time.perf_counter() - start
        if len(outputs) == asked.sequences:
            steps.append(seconds)
            calls.append(timed.seconds)
    steps, calls = steps[WARM_UP_STEPS:-1], calls[WARM_UP_STEPS:-1]  # the last one finishes all
    others = [step - call for step, call in zip(steps, calls, strict=True)]
    whole, host = statistics.median(steps), statistics.median(others)
    print(
        f"{asked.sequences} sequences, {len(steps)} steps: step {whole * 1e3:.2f} ms, "
        f"executor {statistics.median(calls) * 1e3:.2f} ms, the rest {host * 1e3:.3f} ms "
        f"({host / whole:.1%})"
    )
    model.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--new", type=int, default=96, help="new tokens of each sequence")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--temperature", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
