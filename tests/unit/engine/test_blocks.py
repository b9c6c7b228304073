"""Blocks of the cache: one run where there is one, each taken and given back exactly once, none lost too early."""

import random
from dataclasses import dataclass

import pytest
from engine_fakes import scattered

from tandem_api.fit_steps import cache_positions, capacity_for
from tandem_server.engine.native.blocks import (
    BLOCK,
    SPAN,
    BlockPool,
    Grant,
    near_home,
    runs_of,
)


def test_every_slot_finds_its_home_in_whatever_order_slots_come_and_go():
    pool, rng = BlockPool(24), random.Random(1)
    busy: set[int] = set()
    for _ in range(500):
        slot = rng.randrange(6)
        if slot in busy:
            pool.release(slot)
        else:
            assert pool.settle(slot, (), 4, 4 * slot) == Grant(tuple(range(4 * slot, 4 * slot + 4)))
        busy ^= {slot}
        assert pool.free == 24 - 4 * len(busy)
        assert pool.taken - pool.returned == 4 * len(busy)


def names_of(text: str) -> list[bytes]:
    """A name for each beginning of `text`, a letter standing for a block's content."""
    return [text[: end + 1].encode() for end in range(len(text))]


@dataclass
class Model:
    """What stands in each block, as the moves have it; compared with what the pool says is there."""

    pool: BlockPool
    content: list[str]

    def carry_out(self, grant: Grant, text: str, slot_blocks: tuple[int, ...]) -> None:
        for source, target in grant.moves:
            self.content[target] = self.content[source]
        for place, block in enumerate(slot_blocks):
            if place < grant.reused:
                assert self.content[block] == text[: place + 1]
            else:
                self.content[block] = text[: place + 1]

    def found(self, text: str) -> int:
        """Blocks that are there for `text`; each really holds it."""
        blocks = self.pool.find(names_of(text))
        assert [self.content[block] for block in blocks] == [text[: place + 1] for place in range(len(blocks))]
        return len(blocks)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_found_is_there_and_what_is_held_stays(shared):
    """Random texts that begin alike, come, grow and go: names, content and holders agree throughout."""
    for seed in range(150):
        rng = random.Random(seed)
        slots, size = rng.randint(1, 4), rng.randint(2, 6)
        pool = BlockPool(slots * size if not shared else rng.randint(size, slots * size), near_home)
        model, running = Model(pool, [""] * pool.count), dict[int, tuple[str, list[int]]]()
        for _ in range(60):
            slot = rng.randrange(slots)
            if slot in running:
                text, blocks = running[slot]
                assert [model.content[block] for block in blocks] == [text[: n + 1] for n in range(len(blocks))]
                if not shared and len(blocks) < len(text) and rng.random() < 0.5:
                    grant = pool.grow(slot, len(text))
                    for source, target in grant.moves:
                        model.content[target] = model.content[source]
                    for block in grant.blocks:
                        model.content[block] = text[: len(blocks) + 1]
                        blocks.append(block)
                    continue
                pool.publish(slot, names_of(text)[: rng.randint(0, len(blocks))])
                pool.release(slot)
                del running[slot]
                continue
            text = "".join(rng.choice("ab") for _ in range(rng.randint(1, size)))
            found = pool.find(names_of(text))
            if shared:
                if len(text) - len(found) > pool.room(found):
                    continue
                grant = pool.share(slot, found, len(text))
                assert grant.reused == len(found)
            else:
                grant = pool.settle(slot, found, rng.randint(1, len(text)), slot * size)
            model.carry_out(grant, text, grant.blocks)
            running[slot] = (text, list(grant.blocks))
            for other in ("aaaaaa", "abbbbb", "babababa", text):
                model.found(other)
        for slot in running:
            pool.release(slot)
        assert pool.free == pool.count
        assert pool.taken == pool.returned


def test_the_oldest_is_lost_first_and_nothing_while_a_blank_block_is_free():
    pool = BlockPool(8)
    for slot, text in enumerate(("ab", "cd", "ef")):
        pool.share(slot, (), 2)
        pool.publish(slot, names_of(text))
    for slot in (1, 0, 2):
        pool.release(slot)
    pool.share(0, (), 2)
    assert pool.evicted == 0
    pool.share(1, (), 1)
    assert [len(pool.find(names_of(text))) for text in ("ab", "cd", "ef")] == [2, 1, 2], "the end of the oldest goes"
    pool.share(2, pool.find(names_of("cd")), 3)
    assert [len(pool.find(names_of(text))) for text in ("ab", "cd", "ef")] == [0, 1, 2], "what is found is held"
    assert pool.evicted == 3


def test_a_home_is_cleared_by_moving_what_lies_there():
    pool = BlockPool(8)
    pool.settle(0, (), 3, 0)
    pool.publish(0, names_of("abc"))
    pool.release(0)
    grant = pool.settle(0, (), 2, 0)
    assert [source for source, _ in grant.moves] == [0, 1], "the third one may stay where it is"
    assert pool.find(names_of("abc")) == (*(target for _, target in grant.moves), 2)
    pool.release(0)
    again = pool.settle(0, pool.find(names_of("abc")), 3, 0)
    assert (again.blocks, again.reused) == ((0, 1, 2), 3)
    assert pool.find(names_of("abc")) == (0, 1, 2), "it was moved, not copied: nobody else held it"
    other = pool.settle(1, pool.find(names_of("abc")), 3, 4)
    assert other.moves == ((0, 4), (1, 5), (2, 6))
    assert pool.find(names_of("abc")) == (0, 1, 2), "it was copied: its holder reads it"
    assert pool.evicted == 0


def test_what_is_older_makes_room_for_what_is_newer_and_not_the_other_way_round():
    for first, left in ((0, (0, 2)), (1, (2, 0))):
        pool = BlockPool(4)
        pool.settle(0, (), 2, 0)
        pool.settle(1, (), 2, 2)
        pool.publish(0, names_of("ab"))
        pool.publish(1, names_of("cd"))
        pool.release(first)
        pool.release(1 - first)
        pool.settle(0, (), 2, 0)
        assert (len(pool.find(names_of("ab"))), len(pool.find(names_of("cd")))) == left
        assert pool.evicted == 2


def test_moves_of_neighbours_are_one():
    assert runs_of([(1, 5), (2, 6), (3, 7), (9, 8)]) == [(1, 5, 3), (9, 8, 1)]
    assert runs_of([(1, 3), (2, 4), (3, 5)]) == [(1, 3, 2), (3, 5, 1)], "runs must not overlap"
    assert runs_of([]) == []


def test_a_run_elsewhere_is_preferred_to_scattered_blocks():
    assert near_home({0, 2, 3, 4, 7, 8}, 3, 7) == (2, 3, 4)
    assert near_home({0, 2, 4, 6}, 3, 0) == (0, 2, 4)
    assert near_home({0, 1, 2, 5, 6}, 2, 5) == (5, 6)
    assert near_home({9}, 1, 3) == (9,)


def test_scattered_blocks_are_all_different_and_all_come_back():
    pool = BlockPool(10, scattered(random.Random(2)))
    one, other = pool.share(0, (), 4).blocks, pool.share(1, (), 6).blocks
    assert sorted(one + other) == list(range(10))
    assert pool.free == 0
    pool.release(0)
    pool.release(1)
    assert (pool.free, pool.taken, pool.returned) == (10, 10, 10)


def test_what_must_never_happen_is_noticed():
    pool = BlockPool(4)
    pool.share(0, (), 3)
    with pytest.raises(AssertionError, match="slot 0 takes blocks while it holds 3"):
        pool.share(0, (), 1)
    with pytest.raises(AssertionError, match="slot 1 takes 2 blocks and 1 are free"):
        pool.share(1, (), 2)
    with pytest.raises(AssertionError, match="another slot holds blocks of"):
        pool.settle(1, (), 2, 2)
    pool.release(0)
    with pytest.raises(AssertionError, match="slot 0 gave back blocks and holds none"):
        pool.release(0)
    for broken in ((0, 0), (0,), (0, 9)):
        with pytest.raises(AssertionError, match="slot 2 was given"):
            BlockPool(4, lambda free, count, home, given=broken: given).share(2, (), 2)


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
