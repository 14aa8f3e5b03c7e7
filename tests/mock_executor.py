"""A model made of a hash: its logits are a fixed function of the token history, and of nothing else.

It keeps token ids where a real executor keeps keys and values, and reads the history back through the
block tables, so a wrong slot, position or table gives wrong tokens.
"""

from __future__ import annotations

import zlib

import numpy as np

from rusteeze.runtime.batch import Batch

EMPTY = -1


class MockExecutor:
    def __init__(
        self, num_blocks: int = 256, block_size: int = 4, max_batched_tokens: int = 64,
        max_model_len: int = 256, vocab_size: int = 97,
    ) -> None:  # fmt: skip
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_batched_tokens = max_batched_tokens
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.cache = np.full(num_blocks * block_size, EMPTY, np.int32)
        self.batches: list[Batch] = []

    def execute(self, batch: Batch) -> np.ndarray:
        self.batches.append(batch)
        self._check(batch)
        self.cache[batch.slot_mapping] = batch.input_ids
        rows = [self._logits(self._history(batch, row)) for row in batch.rows]
        return np.array(rows, np.float32).reshape(len(rows), self.vocab_size)

    def _history(self, batch: Batch, row: int) -> np.ndarray:
        sequence = int(np.searchsorted(batch.query_start, row, side="right")) - 1
        positions = np.arange(batch.positions[row] + 1)
        blocks = batch.block_tables[sequence][positions // self.block_size]
        history = self.cache[blocks * self.block_size + positions % self.block_size]
        assert (history != EMPTY).all(), "a token attends to a slot that was never written"
        return history

    def _logits(self, history: np.ndarray) -> np.ndarray:
        return logits_of(history, self.vocab_size)

    def _check(self, batch: Batch) -> None:
        assert all(array.dtype == np.int32 for array in vars(batch).values())
        assert 1 <= batch.num_tokens <= self.max_batched_tokens
        assert batch.query_start[0] == 0
        assert batch.query_start[-1] == batch.num_tokens
        assert len(set(batch.slot_mapping.tolist())) == batch.num_tokens, "two tokens, one slot"
        lengths = np.diff(batch.query_start)
        ends = batch.positions[batch.query_start[1:] - 1] + 1
        assert (lengths > 0).all()
        assert (ends == batch.context_len).all()
        assert (batch.context_len <= self.max_model_len).all()


def logits_of(history: np.ndarray, vocab_size: int) -> np.ndarray:
    """f32[V], a hash of the token ids."""
    seed = zlib.crc32(np.asarray(history, np.int32).tobytes())
    return np.random.default_rng(seed).standard_normal(vocab_size, np.float32) * 3


def greedy_tokens(prompt: list[int], count: int, vocab_size: int = 97) -> list[int]:
    """What greedy decoding of the mock model yields, computed without any runtime."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(np.array(tokens), vocab_size).argmax()))
    return tokens[len(prompt) :]
