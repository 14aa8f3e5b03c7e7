"""vLLM's CPU build on a folder of bf16 weights. Runs in an environment of its own.

Usage: answering.py; threads and cache are set by its environment (engines.py), which it reads when it is imported.
The engine runs in this process; prefixes are not reused.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import vllm
from answering import Tokens, answer, own_channel

MAX_MODEL_LEN = 8192
MOST_TOKENS = 4096
MOST_SEQUENCES = 64


class Vllm:
    def __init__(self, path: str) -> None:
        self.params = vllm.SamplingParams
        self.llm = vllm.LLM(
            path, dtype="bfloat16", max_model_len=MAX_MODEL_LEN, max_num_seqs=MOST_SEQUENCES,
            max_num_batched_tokens=MOST_TOKENS, enable_prefix_caching=False, disable_log_stats=True,
        )  # fmt: skip
        self.ids = itertools.count()

    def generate(self, prompts: list[list[int]], new: int) -> Iterator[Tokens]:
        params = self.params(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        engine = self.llm.llm_engine
        number = {str(next(self.ids)): i for i in range(len(prompts))}
        for name, prompt in zip(number, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        seen = [0] * len(prompts)
        while engine.has_unfinished_requests():
            step = []
            for output in engine.step():
                i, tokens = number[output.request_id], output.outputs[0].token_ids
                step += [(i, token) for token in tokens[seen[i] :]]
                seen[i] = len(tokens)
            yield step


def main() -> None:
    channel = own_channel()
    engine = Vllm(sys.argv[1])
    if len(sys.argv) == 3:
        answer(engine.generate, channel)
        return
    text, new = sys.argv[3], int(sys.argv[4])
    tokenizer = engine.llm.get_tokenizer()
    with open(channel, "w") as out:
        for step in engine.generate([tokenizer.encode(text)], new):
            print(tokenizer.decode([token for _, token in step]), end="", file=out, flush=True)


if __name__ == "__main__":
    main()
