"""Blocks of the cache: one run where there is one, each block taken and given back exactly once."""

import random

import pytest
from engine_fakes import scattered

from tandem_server.engine.native.blocks import BLOCK, SPAN, BlockPool, cache_positions, capacity_for, near_home


def test_every_slot_finds_its_home_in_whatever_order_slots_come_and_go():
    pool, rng = BlockPool(24), random.Random(1)
    busy: set[int] = set()
    for _ in range(500):
        slot = rng.randrange(6)
        if slot in busy:
            pool.release(slot)
        else:
            assert pool.take(slot, 4, home=4 * slot) == tuple(range(4 * slot, 4 * slot + 4))
        busy ^= {slot}
        assert pool.free == 24 - 4 * len(busy)
        assert pool.taken - pool.returned == 4 * len(busy)


def test_a_run_elsewhere_is_preferred_to_scattered_blocks():
    assert near_home({0, 2, 3, 4, 7, 8}, 3, 7) == (2, 3, 4)
    assert near_home({0, 2, 4, 6}, 3, 0) == (0, 2, 4)
    assert near_home({0, 1, 2, 5, 6}, 2, 5) == (5, 6)
    assert near_home({9}, 1, 3) == (9,)


def test_scattered_blocks_are_all_different_and_all_come_back():
    pool = BlockPool(10, scattered(random.Random(2)))
    one, other = pool.take(0, 4, 0), pool.take(1, 6, 4)
    assert sorted(one + other) == list(range(10))
    assert pool.free == 0
    pool.release(0)
    pool.release(1)
    assert (pool.free, pool.taken, pool.returned) == (10, 10, 10)


def test_what_must_never_happen_is_noticed():
    pool = BlockPool(4)
    pool.take(0, 3, 0)
    with pytest.raises(AssertionError, match="slot 0 takes blocks while it holds 3"):
        pool.take(0, 1, 3)
    with pytest.raises(AssertionError, match="slot 1 takes 2 blocks and 1 are free"):
        pool.take(1, 2, 0)
    pool.release(0)
    with pytest.raises(AssertionError, match="slot 0 gave back blocks and holds none"):
        pool.release(0)
    for broken in ((0, 0), (0,), (0, 9)):
        with pytest.raises(AssertionError, match="slot 2 was given"):
            BlockPool(4, lambda free, count, home, given=broken: given).take(2, 2, 0)


def test_capacity_is_whole_spans_of_whole_blocks():
    assert [capacity_for(context) for context in (1, 64, 65, 511, 512, 513, 4096)] == [
        64,
        64,
        128,
        512,
        512,
        1024,
        4096,
    ]
    assert 64 % BLOCK == SPAN % 64 == 0, "attention reads whole spans, the finest of 64"
    assert cache_positions(4, 4096) == 4 * 4096 + BLOCK
