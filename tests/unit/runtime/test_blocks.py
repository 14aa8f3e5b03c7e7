from __future__ import annotations

import pytest

from rusteeze.runtime.blocks import BlockPool, OutOfBlocks, blocks_for


def test_blocks_for_rounds_up() -> None:
    assert [blocks_for(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_every_block_is_handed_out_once() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.num_used) == (0, 5)
    with pytest.raises(OutOfBlocks, match="all 5 blocks"):
        pool.allocate()


def test_the_block_freed_last_is_reused_first() -> None:
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    for block in (blocks[1], blocks[2], blocks[0]):
        pool.release(block)
    assert [pool.allocate() for _ in range(3)] == [blocks[0], blocks[2], blocks[1]]


def test_blocks_never_used_are_the_last_resort() -> None:
    pool = BlockPool(100)
    for _ in range(50):
        pool.release(pool.allocate())
    assert pool.allocate() == 0


def test_a_shared_block_is_free_after_its_last_release() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.share(block)
    pool.release(block)
    assert pool.num_used == 1
    pool.release(block)
    assert pool.num_used == 0


def test_a_free_block_can_be_taken_back() -> None:
    pool = BlockPool(3)
    block = pool.allocate()
    pool.release(block)
    pool.share(block)
    pool.check_integrity([[block]])
    assert block not in {pool.allocate(), pool.allocate()}


def test_double_release_is_an_error() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(RuntimeError, match="nobody holds"):
        pool.release(block)


@pytest.mark.parametrize("tables", [[], [[0], [0]], [[0, 1]]])
def test_integrity_check_sees_differences(tables: list[list[int]]) -> None:
    pool = BlockPool(2)
    assert pool.allocate() == 0
    pool.check_integrity([[0]])
    with pytest.raises(RuntimeError, match="references"):
        pool.check_integrity(tables)
