"""llama.cpp through llama-cpp-python's low-level binding. Runs in an environment of its own.

Usage: answering.py. Batches go through llama_decode, all sequences of a step in one; the likeliest token is picked with numpy.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import llama_cpp
import numpy as np
from answering import Tokens, answer, own_channel

BATCH_TOKENS = 2560
CONTEXT_STEP = 256
# For as long as the library may log, its callback must stay alive.
SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCpp:
    """One loaded model and a context that is made anew only when sizes change."""

    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.context, self.sizes = None, (0, 0)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(
            self.vocabulary, data, len(data), ids, len(ids), False, False
        )
        return list(ids[:count])

    def piece(self, token: int) -> str:
        text = ctypes.create_string_buffer(64)
        count = llama_cpp.llama_token_to_piece(self.vocabulary, token, text, 64, 0, False)
        return text.raw[:count].decode(errors="replace")

    def generate(self, prompts: list[list[int]], new: int) -> Iterator[Tokens]:
        """``new`` greedy tokens for each prompt; end tokens count like any other."""
        longest = max(map(len, prompts)) + new
        self._prepare(len(prompts), -(-longest // CONTEXT_STEP) * CONTEXT_STEP)
        tokens = self._prefill(prompts)
        yield list(enumerate(tokens))
        for i in range(new - 1):
            tokens = self._decode(tokens, [len(prompt) + i for prompt in prompts])
            yield list(enumerate(tokens))

    def _prepare(self, sequences: int, length: int) -> None:
        """An empty context for so many sequences of at most ``length`` tokens."""
        if self.sizes != (sequences, length):
            if self.context:
                llama_cpp.llama_free(self.context)
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_seq_max = sequences * length, sequences
            params.n_batch = BATCH_TOKENS
            params.n_threads = params.n_threads_batch = self.threads
            params.kv_unified = False
            self.context = llama_cpp.llama_init_from_model(self.model, params)
            self.sizes = (sequences, length)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        parts = [rows[i : i + BATCH_TOKENS] for i in range(0, len(rows), BATCH_TOKENS)]
        return [token for part in parts for token in self._step(part)]

    def _decode(self, tokens: list[int], positions: list[int]) -> list[int]:
        pairs = enumerate(zip(tokens, positions, strict=True))
        return self._step([(token, position, i, True) for i, (token, position) in pairs])

    def _step(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute rows (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(rows)
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        return [self._likeliest(i) for i, row in enumerate(rows) if row[3]]

    def _likeliest(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


def main() -> None:
    channel = own_channel()
    engine = LlamaCpp(sys.argv[1], int(sys.argv[2]))
    if len(sys.argv) == 3:
        answer(engine.generate, channel)
        return
    text, new = sys.argv[3], int(sys.argv[4])
    with open(channel, "w") as out:
        for ((_, token),) in engine.generate([engine.encode(text)], new):
            print(engine.piece(token), end="", file=out, flush=True)


if __name__ == "__main__":
    main()
