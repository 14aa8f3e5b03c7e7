"""For how much a step's launches are made: the smallest of a few sizes that holds it.

Few sizes mean few sets of launches, each made once and soon a graph. Tokens follow the plan's buckets,
at which grids change; contexts grow by a factor, since kernels skip what lies beyond the true one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.artifact.cuda_contract import Capacities
from rusteeze.runtime.batch import Batch

SMALLEST_CONTEXT, CONTEXT_FACTOR = 512, 4


class Sizes:
    """``buckets``: the plan's; ``max_tokens`` of a step; ``max_context`` of a sequence."""

    def __init__(self, buckets: Sequence[int], max_tokens: int, max_context: int) -> None:
        self._tokens = _ladder(buckets, max_tokens)
        self._contexts = _ladder(_powers(max_context), max_context)
        self._blocks = -(-max_context // BLOCK_SIZE)

    @property
    def most(self) -> Capacities:
        """What holds every step."""
        tokens = self._tokens[-1]
        return Capacities(tokens, tokens, tokens, self._contexts[-1], self._blocks)

    def fit(self, batch: Batch, num_tiles: int) -> Capacities:
        """The capacities of a step. No logits wanted are no rows; a step of one token a sequence has as
        many tiles as tokens."""
        rows = len(batch.rows)
        return Capacities(
            tokens=_least(self._tokens, batch.num_tokens),
            rows=_least(self._tokens, rows) if rows else 0,
            tiles=_least(self._tokens, num_tiles),
            context=_least(self._contexts, int(np.max(batch.context_len))),
            blocks=self._blocks,
        )


def _powers(most: int) -> list[int]:
    sizes = [SMALLEST_CONTEXT]
    while sizes[-1] < most:
        sizes.append(sizes[-1] * CONTEXT_FACTOR)
    return sizes


def _ladder(sizes: Sequence[int], most: int) -> list[int]:
    """The sizes below ``most``, doublings of the last of them, and ``most``."""
    ladder = [size for size in sizes if size < most] or [1]
    while ladder[-1] * 2 < most:
        ladder.append(ladder[-1] * 2)
    return [*ladder, most] if ladder[-1] != most else ladder


def _least(sizes: Sequence[int], count: int) -> int:
    """The smallest size that holds ``count``."""
    return sizes[bisect_left(sizes, count)]
