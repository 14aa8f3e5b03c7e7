"""For how much a step's launches are made."""

from __future__ import annotations

from array import array

import pytest
from toy_cuda import MAX_MODEL_LEN

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.artifact.cuda_contract import Capacities
from rusteeze.runtime.batch import Batch, build_batch
from rusteeze.runtime.cuda.capacities import Sizes
from rusteeze.runtime.scheduler import Chunk, Step


def batch_of(tokens: int, start: int = 0) -> Batch:
    """One sequence."""
    table = array("i", range(40))
    return build_batch(Step((Chunk("a", start, (1,) * tokens, table, num_rows=1, samples=True),)), BLOCK_SIZE)


class TestSizes:
    def test_buckets_then_doublings(self) -> None:
        sizes = Sizes((1, 2, 4, 8), 100, 5000)
        assert sizes.most == Capacities(100, 100, 100, 5000, 313)

    @pytest.mark.parametrize(("tokens", "capacity"), [(1, 1), (3, 4), (8, 8), (9, 16), (33, 64), (65, 100)])
    def test_the_smallest_that_holds_it(self, tokens: int, capacity: int) -> None:
        sizes = Sizes((1, 2, 4, 8), 100, 5000)
        batch = batch_of(tokens)
        assert sizes.fit(batch, 3) == Capacities(capacity, 1, 4, 512, 313)

    def test_a_model_for_less_than_the_first_bucket(self) -> None:
        assert Sizes((16, 32), 8, 100).most == Capacities(8, 8, 8, 100, 7)

    def test_longer_contexts(self) -> None:
        sizes = Sizes((1,), 64, MAX_MODEL_LEN)
        batch = batch_of(1, 512)
        assert sizes.fit(batch, 1).context == MAX_MODEL_LEN
