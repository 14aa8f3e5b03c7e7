"""KV-cache blocks: who holds which, and which are free. Pure Python; knows no tensors.

A block is a number; the executor keeps ``block_size`` tokens of KV at that index. A *block table*
lists the blocks of one sequence in order: position p lies in ``table[p // block_size]``.
Invariants:

- a block is free exactly when nobody refers to it, so free + used == total;
- tables are append-only while a sequence runs; preemption drops the whole table;
- a free block may be *kept*: its contents can be found again (prefix_cache.py) until it is reused;
- of the free blocks that are not kept, the one freed last is reused first: it may still be in the
  processor's caches, and memory that was never touched stays untouched as long as possible;
- kept blocks are reused last, the one released longest ago first. Blocks never used go before them:
  were it the other way round, each request would overwrite what the one before left behind, and the
  cache could not outgrow the peak load. So the process may grow to the size of the pool, which is
  what the pool's size promises; without kept blocks it stays at its peak load.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

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
        # Ordered sets: any block can be taken out of the middle. The last of _free is reused next,
        # and once it is empty the first of _free_kept.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(reversed(range(num_blocks)))
        self._free_kept: OrderedDict[int, None] = OrderedDict()
        self._kept: set[int] = set()
        self.on_evict: Callable[[int], None] = lambda block: None
        """Called when a kept block is reused: its contents are about to be overwritten."""

    @property
    def num_blocks(self) -> int:
        return len(self._references)

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._free_kept)

    @property
    def num_free_kept(self) -> int:
        """Free blocks whose contents can still be found."""
        return len(self._free_kept)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def allocate(self) -> int:
        """A free block, now held once. OutOfBlocks when there is none."""
        if self._free:
            block, _ = self._free.popitem(last=True)
        elif self._free_kept:
            block, _ = self._free_kept.popitem(last=False)
            self._kept.discard(block)
            self.on_evict(block)
        else:
            raise OutOfBlocks(f"all {self.num_blocks} blocks are in use")
        self._references[block] = 1
        return block

    def is_free(self, block: int) -> bool:
        return self._references[block] == 0

    def share(self, block: int) -> None:
        """One more holder of a block; a free block is taken back into use with its contents."""
        self._free.pop(block, None)
        self._free_kept.pop(block, None)
        self._references[block] += 1

    def keep(self, block: int) -> None:
        """The contents of a block in use can be found from now on."""
        self._kept.add(block)

    def discard(self, block: int) -> None:
        """The contents of a block are worth nothing any more."""
        self._kept.discard(block)
        if self._free_kept.pop(block, False) is None:
            self._free[block] = None

    def release(self, block: int) -> None:
        """One holder less. RuntimeError when the block is free already."""
        if self._references[block] < 1:
            raise RuntimeError(f"block {block} is released but nobody holds it")
        self._references[block] -= 1
        if self._references[block] == 0:
            (self._free_kept if block in self._kept else self._free)[block] = None

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Compare the counts with the tables of all live sequences. RuntimeError if they differ."""
        held = Counter(block for table in tables for block in table)
        for block, references in enumerate(self._references):
            if held[block] != references:
                raise RuntimeError(
                    f"block {block} is in {held[block]} tables but has {references} references"
                )
            kept = block in self._kept
            lists = (block in self._free, block in self._free_kept)
            if lists != (references == 0 and not kept, references == 0 and kept):
                raise RuntimeError(f"the free lists are wrong about block {block}")
