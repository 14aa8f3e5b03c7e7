"""A Step as the arrays that an executor reads. All int32; T tokens, R rows, S sequences.

Example with T = 5, S = 3, R = 3; sequence s has the tokens query_start[s] … query_start[s + 1]:

    query_start   0        3  4  5
    input_ids     a0 a1 a2 b9 c7
    positions     0  1  2  9  7
    rows                2  3  4       whose logits are wanted
    slot_mapping  where the KV of each token goes: block * block_size + offset
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from rusteeze.runtime.blocks import new_block_table
from rusteeze.runtime.scheduler import Chunk, Step


@dataclass(frozen=True)
class Batch:
    """The ragged batch of one step."""

    input_ids: np.ndarray  # [T]
    positions: np.ndarray  # [T]
    slot_mapping: np.ndarray  # [T]
    rows: np.ndarray  # [R], ascending indices into T
    query_start: np.ndarray  # [S + 1]
    context_len: np.ndarray  # [S], KV length of each sequence including this step's tokens
    block_tables: np.ndarray  # [S, max_blocks], 0 where not needed

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.context_len)


def build_batch(step: Step, block_size: int) -> Batch:
    """The arrays of a step that has at least one chunk."""
    chunks = step.chunks
    starts = np.array([chunk.start for chunk in chunks], np.int32)
    if step.is_decode:
        return _decode_batch(chunks, starts, block_size)
    lengths = np.array([len(chunk.token_ids) for chunk in chunks], np.int32)
    query_start = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths, out=query_start[1:])
    tables = _block_tables(chunks, -(-(starts + lengths) // block_size))

    owner = np.repeat(np.arange(len(chunks), dtype=np.int32), lengths)  # [T], index into S
    positions = np.arange(query_start[-1], dtype=np.int32) + (starts - query_start[:-1])[owner]
    block, offset = np.divmod(positions, np.int32(block_size))
    return Batch(
        input_ids=np.fromiter(chain.from_iterable(c.token_ids for c in chunks), np.int32),
        positions=positions,
        slot_mapping=tables[owner, block] * np.int32(block_size) + offset,
        rows=_rows(chunks, query_start),
        query_start=query_start,
        context_len=starts + lengths,
        block_tables=tables,
    )


def _decode_batch(chunks: tuple[Chunk, ...], starts: np.ndarray, block_size: int) -> Batch:
    """The same where every chunk is one token with one row: nearly all steps, and nothing is ragged."""
    block, offset = np.divmod(starts, np.int32(block_size))
    tables = _block_tables(chunks, block + 1)
    rows = np.arange(len(chunks) + 1, dtype=np.int32)
    return Batch(
        input_ids=np.array([chunk.token_ids[0] for chunk in chunks], np.int32),
        positions=starts,
        slot_mapping=tables[rows[:-1], block] * np.int32(block_size) + offset,
        rows=rows[:-1],
        query_start=rows,
        context_len=starts + np.int32(1),
        block_tables=tables,
    )


def _block_tables(chunks: tuple[Chunk, ...], needed: np.ndarray) -> np.ndarray:
    """The first ``needed`` blocks of each chunk's table, in a row filled up with 0."""
    joined = new_block_table()
    for chunk, num_blocks in zip(chunks, needed.tolist(), strict=True):
        table = chunk.block_table
        joined.extend(table if len(table) == num_blocks else table[:num_blocks])
    width = needed.max()
    tables = np.zeros((len(chunks), width), np.int32)
    tables[np.arange(width) < needed[:, None]] = np.frombuffer(joined, np.int32)
    return tables


def _rows(chunks: tuple[Chunk, ...], query_start: np.ndarray) -> np.ndarray:
    ends = query_start[1:].tolist()
    wanted = (range(end - chunk.num_rows, end) for end, chunk in zip(ends, chunks, strict=True))
    return np.fromiter(chain.from_iterable(wanted), np.int32)
