"""KV-cache blocks: who holds which, and which are free. Pure Python; knows no tensors.

A block is a number; the executor keeps ``block_size`` tokens of KV at that index. A *block table*
lists the blocks of one sequence in order: position p lies in ``table[p // block_size]``.
Invariants:

- a block is free exactly when nobody refers to it, so free + used == total;
- tables are append-only while a sequence runs; preemption drops the whole table;
- the block that was freed last is reused first: it may still be in the processor's caches, and memory
  that was never touched stays untouched, so that the process is as large as its peak load asks.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable

BlockTable = array  # of i32; append-only, readable as a buffer without conversion


def new_block_table() -> BlockTable[int]:
    return array("i")


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Number of blocks that hold ``num_tokens`` tokens."""
    return -(-num_tokens // block_size)


class OutOfBlocks(RuntimeError):
    """No block is free."""


class BlockPool:
    """A fixed set of blocks 0 … num_blocks - 1 with reference counts; every operation is O(1).

    A block may be shared (``share``) by sequences with a common prefix; it is free again when the
    last of them has released it.
    """

    def __init__(self, num_blocks: int) -> None:
        self._references = [0] * num_blocks
        # An ordered set: the last is reused next, and any one can be taken out of the middle.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(reversed(range(num_blocks)))

    @property
    def num_blocks(self) -> int:
        return len(self._references)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def allocate(self) -> int:
        """A free block, now held once. OutOfBlocks when there is none."""
        if not self._free:
            raise OutOfBlocks(f"all {self.num_blocks} blocks are in use")
        block, _ = self._free.popitem(last=True)
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of a block; a free block is taken back into use with its contents."""
        self._free.pop(block, None)
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One holder less. RuntimeError when the block is free already."""
        if self._references[block] < 1:
            raise RuntimeError(f"block {block} is released but nobody holds it")
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Compare the counts with the tables of all live sequences. RuntimeError if they differ."""
        held = Counter(block for table in tables for block in table)
        for block, references in enumerate(self._references):
            if held[block] != references:
                raise RuntimeError(
                    f"block {block} is in {held[block]} tables but has {references} references"
                )
            if (block in self._free) != (references == 0):
                raise RuntimeError(f"the free list is wrong about block {block}")
