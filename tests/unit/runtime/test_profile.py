"""Batches to profile, and how much work a step gives each call."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rusteeze.artifact.contract import Cost
from rusteeze.runtime.profile import decode_batches, prefill_batches, work

EXECUTOR = SimpleNamespace(block_size=16, max_batched_tokens=64, num_blocks=10)


def test_decoding_is_one_token_for_each_sequence_with_pages_of_its_own() -> None:
    (batch,) = decode_batches(EXECUTOR, 3, 33)  # type: ignore[arg-type]
    assert batch.context_len.tolist() == [33, 33, 33]
    assert batch.positions.tolist() == [32, 32, 32]
    assert len(np.unique(batch.block_tables)) == 9
    assert len(batch.rows) == 3


def test_a_prompt_comes_in_chunks_and_the_last_one_wants_logits() -> None:
    batches = prefill_batches(EXECUTOR, 150)  # type: ignore[arg-type]
    assert [batch.num_tokens for batch in batches] == [64, 64, 22]
    assert [len(batch.rows) for batch in batches] == [0, 0, 1]
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(150))


def test_batches_stay_within_the_cache() -> None:
    for sequences, length in ((4, 33), (1, 161)):
        with pytest.raises(ValueError, match="do not fit into the cache"):
            decode_batches(EXECUTOR, sequences, length)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit into the cache"):
        prefill_batches(EXECUTOR, 161)  # type: ignore[arg-type]


def test_work_counts_rows_pairs_and_the_cache() -> None:
    (batch,) = decode_batches(EXECUTOR, 2, 40)  # type: ignore[arg-type]
    cost = Cost(row_flops=10, row_bytes=3, weight_bytes=1000, pair_flops=5, cached_bytes=7)
    assert work(cost, batch) == (2 * 10 + 2 * 40 * 5, 2 * 3 + 1000 + 2 * 40 * 7)
    first, *_ = prefill_batches(EXECUTOR, 4)  # type: ignore[arg-type]
    assert work(Cost(pair_flops=1), first)[0] == 1 + 2 + 3 + 4


def test_a_window_bounds_what_is_seen() -> None:
    (batch,) = decode_batches(EXECUTOR, 1, 40)  # type: ignore[arg-type]
    assert work(Cost(pair_flops=1, cached_bytes=1, window=8), batch) == (8, 9)


def test_no_more_is_gathered_than_there_is() -> None:
    (batch,) = decode_batches(EXECUTOR, 4, 1)  # type: ignore[arg-type]
    assert work(Cost(gathered_row_bytes=10, gathered_bytes=100), batch)[1] == 40
    assert work(Cost(gathered_row_bytes=30, gathered_bytes=100), batch)[1] == 100


def test_calls_over_logits_rows_do_nothing_where_none_are_wanted() -> None:
    first, *_ = prefill_batches(EXECUTOR, 150)  # type: ignore[arg-type]
    assert work(Cost(space="R", row_flops=10, weight_bytes=1000), first) == (0, 0)
