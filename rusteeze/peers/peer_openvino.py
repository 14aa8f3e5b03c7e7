"""OpenVINO GenAI, which reads the GGUF file itself. Runs in an environment of its own.

Usage: answering.py. Sequences go through its continuous batching pipeline, without reuse of prefixes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import openvino
import openvino_genai as genai
from answering import Tokens, answer, own_channel

CACHE_GB = 4
MOST_TOKENS = 2560
MOST_SEQUENCES = 64


class OpenVino:
    def __init__(self, path: str, threads: int) -> None:
        config = genai.SchedulerConfig()
        config.cache_size = CACHE_GB
        config.max_num_batched_tokens, config.max_num_seqs = MOST_TOKENS, MOST_SEQUENCES
        config.dynamic_split_fuse, config.enable_prefix_caching = True, False
        options = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = genai.ContinuousBatchingPipeline(path, config, "CPU", options)
        self.requests = 0

    def encode(self, text: str) -> list[int]:
        ids = self.pipeline.get_tokenizer().encode(text, add_special_tokens=False).input_ids
        return [int(token) for token in ids.data[0]]

    def generate(self, prompts: list[list[int]], new: int) -> Iterator[Tokens]:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        handles = [self._add(prompt, config) for prompt in prompts]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            yield [(i, token) for i, handle in enumerate(handles) for token in _new_tokens(handle)]

    def _add(self, prompt: list[int], config: genai.GenerationConfig) -> genai.GenerationHandle:
        self.requests += 1
        ids = openvino.Tensor(np.array([prompt], np.int64))
        return self.pipeline.add_request(self.requests, ids, config)


def _new_tokens(handle: genai.GenerationHandle) -> list[int]:
    if not handle.can_read():
        return []
    return [token for output in handle.read().values() for token in output.generated_ids]


def main() -> None:
    channel = own_channel()
    engine = OpenVino(sys.argv[1], int(sys.argv[2]))
    if len(sys.argv) == 3:
        answer(engine.generate, channel)
        return
    text, new = sys.argv[3], int(sys.argv[4])
    tokenizer = engine.pipeline.get_tokenizer()
    with open(channel, "w") as out:
        for step in engine.generate([engine.encode(text)], new):
            print(tokenizer.decode([token for _, token in step]), end="", file=out, flush=True)


if __name__ == "__main__":
    main()
