"""Random numbers that are a function of a seed and a position alone."""

from __future__ import annotations

import numpy as np

# Making a generator costs more than drawing from it, and positions follow each other.
_AHEAD = 64
_WORDS = 4  # of a counter's block; only the first is used


class Uniforms:
    """One number in [0, 1) for each position, from the counter-based generator Philox."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._first = 0
        self._numbers: list[float] = []

    def at(self, position: int) -> float:
        """The number of a position; positions in any order, ascending ones are quick."""
        if not 0 <= position - self._first < len(self._numbers):
            words = np.random.Philox(key=self._seed, counter=position).random_raw(_WORDS * _AHEAD)
            self._numbers = ((words[::_WORDS] >> np.uint64(11)) * 2.0**-53).tolist()
            self._first = position
        return self._numbers[position - self._first]
