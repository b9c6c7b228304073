"""What fits, as arithmetic: contexts that shrink, are refused, or share; bytes of matrices by how they are held."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.fit import (
    DEFAULT_SLOTS,
    MIB,
    RESERVE_BYTES,
    Estimate,
    Fit,
    Footprint,
    Refusal,
    Wish,
    fit_context,
    pool_blocks,
    reserve_bytes,
)
from tandem_api.fit_steps import BLOCK, Steps, StepShape, batch_sizes, cache_positions, capacity_for
from tandem_api.fit_weights import Inventory, Matrix, Packing

STEP = StepShape(hidden=64, qkv_width=128, intermediate=96, heads=4, kv_heads=2, head_size=16, vocabulary=160)
LIMIT = 4096


def model(**changes) -> Footprint:
    facts = {"weights": 500 * MIB, "token": 64 << 10, "fixed": 300 * MIB, "loading": 20 * MIB, "steps": Steps(STEP, 4)}
    return Footprint("LlamaForCausalLM", LIMIT, **{**facts, **changes})


def kv(slots: int, context: int, token: int = MIB) -> int:
    return cache_positions(slots, context) * token


def test_all_that_is_asked_is_given_where_it_fits():
    wish = Wish(context=None)
    assert fit_context(wish, LIMIT, 4, 10_000 * MIB, lambda n: kv(4, n, 1024), "") == (LIMIT, "")
    assert fit_context(Wish(context=2000), LIMIT, 4, 10_000 * MIB, lambda n: kv(4, n, 1024), "") == (2000, "")
    context, reason = fit_context(Wish(context=9000), LIMIT, 4, 10_000 * MIB, lambda n: kv(4, n, 1024), "")
    assert context == LIMIT
    assert reason == "9000 tokens were asked for, the model was made for 4096"


@pytest.mark.parametrize(
    ("wish", "free", "said"),
    [
        (Wish(context=4096, may_shrink=False), 744, "4 slots of 4096 tokens need 16,416 MiB and 744 MiB is free here;"),
        (Wish(context=4096, min_context=1024), 744, "at least 1024 tokens are asked for, which need 4,128 MiB"),
        (Wish(context=9000, may_shrink=False), 10**6, "the model was made for 4096; lower context.length"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(wish, free, said):
    refusal = fit_context(wish, LIMIT, 4, free * MIB, lambda n: kv(4, n), " here")
    assert isinstance(refusal, Refusal)
    assert said in refusal.reason
    assert refusal.too_long == (wish.context == 9000)
    assert refusal.least <= refusal.needed


def test_the_least_context_is_given_where_no_larger_multiple_of_the_grain_is_wanted():
    """1000 tokens take 1024 positions: the multiple of 64 below it would be too few, itself is not."""
    wish = Wish(context=4096, min_context=1000)
    given_ = fit_context(wish, LIMIT, 1, 1100, lambda n: n + 90, "")
    assert not isinstance(given_, Refusal)
    assert given_[0] == 1000


@given(
    slots=st.integers(1, 64),
    asked=st.one_of(st.none(), st.integers(4, 9000)),
    least=st.integers(4, 3000),
    shrinks=st.booleans(),
    shared=st.booleans(),
    free=st.integers(0, 6000),
)
def test_what_is_given_fits_and_what_is_refused_does_not(slots, asked, least, shrinks, shared, free):
    wish = Wish(slots=slots, context=asked, min_context=least, may_shrink=shrinks, shared=shared)
    estimate = Estimate(model(), wish)
    wanted = min(asked or LIMIT, LIMIT)
    given_ = estimate.fitting(free * MIB)
    if isinstance(given_, Refusal):
        assert given_.too_long or given_.least > free * MIB
        assert given_.too_long == (not shrinks and (asked or 0) > LIMIT)
        return
    assert estimate.minimum_bytes <= given_.bytes <= free * MIB
    assert given_.slots == slots, "slots are kept"
    assert min(least, wanted) <= given_.context <= wanted
    assert bool(given_.reason) == (given_.context < wanted or (asked or 0) > LIMIT)
    if given_.context < wanted:
        assert shrinks
        assert given_.needed > free * MIB or shared
        assert estimate.bytes_at((given_.context // 64 + 1) * 64) > free * MIB, "none larger would have fitted"
    if shared:
        assert given_.pool_blocks * BLOCK >= capacity_for(given_.context)


@given(st.integers(1, 64), st.integers(4, LIMIT - 1), st.booleans())
def test_more_context_never_takes_less(slots, context, on_gpu):
    estimate = Estimate(model(steps=Steps(STEP, 2, on_gpu)), Wish(slots=slots))
    assert estimate.bytes_at(context) <= estimate.bytes_at(context + 1) <= estimate.wanted_bytes


def test_parts_come_to_the_whole_and_loading_counts_only_where_it_is_the_worst_moment():
    estimate = Estimate(model(loading=10_000 * MIB), Wish(context=64))
    parts = estimate.parts_at(64)
    assert estimate.slots == DEFAULT_SLOTS
    assert parts.cache == (4 * 64 + BLOCK) * (64 << 10)
    assert parts.total == parts.weights + parts.fixed + 10_000 * MIB
    assert Estimate(model(), Wish()).parts_at(LIMIT).loading == 0


def test_a_refusal_tells_the_least_and_fail_asks_for_all():
    may, must = (Estimate(model(), Wish(may_shrink=shrinks)) for shrinks in (True, False))
    assert may.minimum_bytes == may.bytes_at(256) < must.minimum_bytes == must.wanted_bytes
    free = must.wanted_bytes - 1
    assert isinstance(must.fitting(free), Refusal)
    given_ = may.fitting(free)
    assert isinstance(given_, Fit)
    assert given_.context < LIMIT
    assert given_.needed == may.wanted_bytes
    refusal = may.fitting(700 * MIB)
    assert isinstance(refusal, Refusal)
    assert refusal.least == may.minimum_bytes
    assert "700 MiB is free for weights and all" in refusal.reason


def test_a_shared_pool_takes_the_memory_that_there_is_and_no_more_than_all_contexts_need():
    """Contexts of 4000 tokens need 4096 positions each; one block more is for rows without a request."""
    token = 32 << 10
    assert pool_blocks(4000, 4, token, 4 * 4096 * token + BLOCK * token) == 4 * 4096 // BLOCK
    assert pool_blocks(4000, 4, token, 100_000 * MIB) == 4 * 4096 // BLOCK
    assert pool_blocks(4000, 4, token, 6000 * token) == 6000 // BLOCK - 1
    estimate = Estimate(model(token=token), Wish(slots=4, shared=True))
    whole, given_ = estimate.fitting(10**12), estimate.fitting(estimate.minimum_bytes + 200 * MIB)
    assert isinstance(whole, Fit)
    assert whole.bytes == estimate.wanted_bytes
    assert isinstance(given_, Fit)
    assert (given_.context, given_.reason) == (LIMIT, ""), "one context is enough where slots share"
    assert LIMIT // BLOCK < given_.pool_blocks < 4 * LIMIT // BLOCK


def test_what_is_left_free_for_others():
    assert reserve_bytes(1000 * MIB) == RESERVE_BYTES
    assert reserve_bytes(100_000 * MIB) == 5000 * MIB


@pytest.mark.parametrize(
    ("packing", "size"),
    [
        (Packing(4), 4 * 100 * 64 + 4 * 100),
        (Packing(2, "Int8"), 100 * 64 + 2 * 100 + 2 * 100),
        (Packing(2, "Int4"), 128 * 64 // 2 + 128 * 2 * 4 + 2 * 100),
    ],
)
def test_a_matrix_is_counted_as_it_is_held(packing, size):
    matrix = Matrix(100, 64, bias=True)
    assert packing.bytes(matrix) == size
    assert packing.bytes(Matrix(100, 64, exact=True)) == 100 * 64 * packing.itemsize


def test_a_tied_table_is_there_once_on_a_gpu_and_twice_where_it_is_packed():
    inventory = Inventory(Matrix(160, 64), (Matrix(64, 64, count=3),), tied=True, vectors=10, exact_vectors=5)
    layers = 3 * 64 * 64 * 2 + 10 * 2 + 5 * 4
    assert inventory.bytes(Packing(2, on_gpu=True)) == layers + 160 * 64 * 2
    assert inventory.bytes(Packing(2)) == layers + 2 * 160 * 64 * 2
    assert inventory.bytes(Packing(2, "Int8", on_gpu=True)) == 3 * 66 * 64 + 40 + 160 * 66 + 160 * 64 * 2
    assert inventory.parameters == 3 * 64 * 64 + 160 * 64 + 15
    assert inventory.unpacked(Packing(2, "Int8")) == 64 * 64 * 2
    assert inventory.unpacked(Packing(2, "Int8", on_gpu=True)) == 160 * 64 * 2


def test_graphs_are_counted_on_a_gpu_only():
    on_cpu, on_gpu = Steps(STEP, 2), Steps(STEP, 2, on_gpu=True, processors=132)
    assert on_gpu.bytes(8, 1024) - on_cpu.bytes(8, 1024) > len(batch_sizes(8)) * (8 << 20)
