"""Which blocks hold the KV of which tokens, so that equal beginnings are computed once.

The key of a full block is SHA-256 over the key of the block before it and its token ids; the chain
begins with the layout of the cache (which kernels wrote it) and the request's salt. So a key stands
for everything that its KV depends on, and requests with different salts never meet. Token ids are
compared on a hit as well: not even a collision can hand out somebody else's cache.

Only full blocks are shared, and only once their KV is there. They are never written again, so nothing
has to be copied: what two sequences share ends at a block boundary, each computes its own rest.
"""

from __future__ import annotations

from array import array
from hashlib import sha256

from rusteeze.runtime.blocks import BlockPool
from rusteeze.runtime.sequence import Sequence


class PrefixCache:
    """Finds blocks by content. The pool says when one is reused; counts are in tokens."""

    def __init__(self, pool: BlockPool, block_size: int, layout: str = "") -> None:
        self._pool = pool
        self._block_size = block_size
        self._layout = sha256(layout.encode()).digest()
        self._blocks: dict[bytes, int] = {}
        self._contents: dict[int, tuple[bytes, bytes]] = {}  # block to its key and token ids
        self.num_queried = 0
        self.num_hits = 0
        pool.on_evict = self._drop

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest cached beginning that leaves every wanted row to be computed."""
        keys = self.keys(sequence, sequence.next_row // self._block_size)
        found: list[int] = []
        for index, key in enumerate(keys):
            block = self._blocks.get(key)
            if block is None or self._contents[block][1] != self._tokens(sequence, index):
                break
            found.append(block)
        return found

    def keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """The keys of a sequence's first ``count`` blocks, all of them full."""
        keys = sequence.block_keys
        while len(keys) < count:
            parent = keys[-1] if keys else self._root(sequence)
            keys.append(sha256(parent + self._tokens(sequence, len(keys))).digest())
        return keys[:count]

    def store(self, sequence: Sequence, start: int, end: int) -> None:
        """The KV of the tokens ``start … end`` is there now: their full blocks can be found."""
        first, last = start // self._block_size, end // self._block_size
        if first == last:
            return
        keys = self.keys(sequence, last)
        for index in range(first, last):
            block = sequence.block_table[index]
            # Of two blocks with the same contents the first stays known.
            if self._blocks.setdefault(keys[index], block) == block:
                self._contents[block] = (keys[index], self._tokens(sequence, index))
                self._pool.keep(block)

    def forget(self, sequence: Sequence) -> None:
        """Nobody shall find the blocks of this sequence any more."""
        for block in sequence.block_table:
            if block in self._contents:
                self._drop(block)
                self._pool.discard(block)

    def check_integrity(self) -> None:
        """RuntimeError when the two directions of the index differ."""
        if {block: key for key, block in self._blocks.items()} != {
            block: key for block, (key, _) in self._contents.items()
        }:
            raise RuntimeError("the prefix cache's index is inconsistent")

    def _drop(self, block: int) -> None:
        key, _ = self._contents.pop(block)
        del self._blocks[key]

    def _root(self, sequence: Sequence) -> bytes:
        return sha256(self._layout + sequence.cache_salt.encode()).digest()

    def _tokens(self, sequence: Sequence, index: int) -> bytes:
        start = index * self._block_size
        return array("i", sequence.token_ids[start : start + self._block_size]).tobytes()
