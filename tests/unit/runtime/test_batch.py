from __future__ import annotations

from array import array

import numpy as np

from rusteeze.runtime.batch import build_batch
from rusteeze.runtime.scheduler import Chunk, Step


def chunk(start: int, tokens: tuple[int, ...], table: list[int], num_rows: int = 1) -> Chunk:
    return Chunk("id", start, tokens, array("i", table), num_rows, samples=num_rows > 0)


def test_a_ragged_batch_of_prefill_and_decodes() -> None:
    step = Step((chunk(0, (50, 51, 52), [7, 3]), chunk(9, (60,), [5, 1, 4, 8]), chunk(2, (70, 71), [2], 0)))
    batch = build_batch(step, block_size=4)
    expected = {
        "input_ids": [50, 51, 52, 60, 70, 71],
        "positions": [0, 1, 2, 9, 2, 3],
        "slot_mapping": [28, 29, 30, 4 * 4 + 1, 10, 11],
        "rows": [2, 3],
        "query_start": [0, 3, 4, 6],
        "context_len": [3, 10, 4],
        "block_tables": [[7, 0, 0], [5, 1, 4], [2, 0, 0]],
    }
    for name, values in expected.items():
        array_ = getattr(batch, name)
        assert array_.dtype == np.int32, name
        assert array_.tolist() == values, name


def test_a_batch_of_decodes_is_what_it_would_be_beside_a_prefill() -> None:
    decodes = (chunk(9, (60,), [5, 1, 4, 8]), chunk(0, (61,), [6]), chunk(15, (62,), [2, 3, 9, 7, 10]))
    alone = build_batch(Step(decodes), block_size=4)
    mixed = build_batch(Step((*decodes, chunk(0, (50, 51), [0]))), block_size=4)
    for name in ("input_ids", "positions", "slot_mapping", "rows", "context_len", "block_tables"):
        found, wanted = getattr(alone, name), getattr(mixed, name)[:3]
        assert found.dtype == wanted.dtype == np.int32, name
        assert found.tolist() == wanted.tolist(), name
    assert alone.query_start.tolist() == mixed.query_start[:4].tolist()


def test_several_rows_of_one_chunk() -> None:
    step = Step((chunk(0, (1, 2, 3, 4), [0], 3), chunk(0, (5, 6), [1], 2)))
    assert build_batch(step, 4).rows.tolist() == [1, 2, 3, 4, 5]


def test_no_rows_at_all() -> None:
    batch = build_batch(Step((chunk(0, (1, 2), [0], 0),)), 4)
    assert batch.rows.shape == (0,)
    assert batch.rows.dtype == np.int32
