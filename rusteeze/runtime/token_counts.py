"""How often each token has occurred in one request, and the penalties that follow from it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rusteeze.runtime.params import SamplingParams


class TokenCounts:
    """The distinct tokens of prompt and output with the number of times each is in the *output*.

    Kept as two growing arrays, so that one more token costs O(1) and a step costs O(distinct).
    """

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        self._ids = np.unique(np.fromiter(prompt_ids, np.int64))
        self._counts = np.zeros(len(self._ids), np.float32)
        self._index = {int(token): index for index, token in enumerate(self._ids)}

    def add(self, token_id: int) -> None:
        """One more occurrence in the output."""
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self._ids):
            self._grow()
        self._ids[index] = token_id
        self._counts[index] += 1

    def penalise(self, logits: np.ndarray, params: SamplingParams) -> None:
        """Apply the three penalties to logits f32[V] in place."""
        size = len(self._index)
        ids, counts = self._ids[:size], self._counts[:size]
        values = logits[ids]
        factor = np.float32(params.repetition_penalty)
        values = np.where(values > 0, values / factor, values * factor)
        values -= np.float32(params.frequency_penalty) * counts
        values -= np.float32(params.presence_penalty) * (counts > 0)
        logits[ids] = values

    def _grow(self) -> None:
        extra = max(64, len(self._ids))
        self._ids = np.concatenate([self._ids, np.zeros(extra, np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(extra, np.float32)])
