"""The largest numbers of a row: the same as torch finds, ties, missing numbers and odd lengths included."""

import pytest
import torch

from tandem_server.engine.native.largest import COLUMNS, CROWD, largest, top

pytestmark = pytest.mark.torch

LENGTHS = [1, 40, 96, 3072, 8192, 8193, 49152]


def rows(count: int, length: int, distinct: bool) -> torch.Tensor:
    """Random rows; where not `distinct`, of few different numbers."""
    generator = torch.Generator().manual_seed(length)
    if distinct:
        return torch.rand(count, length, generator=generator).argsort(-1).float()
    return torch.randint(0, 5, (count, length), generator=generator).float()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("distinct", [True, False])
def test_the_largest_is_the_first_of_equals(length, distinct):
    given = rows(7, length, distinct)
    values, places = largest(given)
    assert torch.equal(values, given.amax(-1))
    # argmax of a numpy array is the first one by definition.
    assert places.tolist() == given.numpy().argmax(-1).tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_missing_and_infinite_numbers_come_through(length):
    given = rows(4, length, True)
    given[0, length // 2], given[1, length // 3], given[2] = torch.nan, torch.inf, -torch.inf
    values, places = largest(given)
    assert values[0].isnan()
    assert values[1:3].tolist() == [torch.inf, -torch.inf]
    assert places[:3].tolist() == [length // 2, length // 3, 0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("k", [1, 20, 128])
def test_the_top_numbers_are_those_of_a_sort(length, k):
    k = min(k, length)
    given = rows(5, length, True)
    values, places = top(given, k)
    wanted = given.sort(-1, descending=True)
    assert torch.equal(values, wanted.values[:, :k])
    assert torch.equal(places, wanted.indices[:, :k])
    repeated = rows(5, length, False)
    values, places = top(repeated, k)
    assert torch.equal(values, repeated.sort(-1, descending=True).values[:, :k])
    assert torch.equal(repeated.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist()), "no place twice"


def test_top_numbers_that_share_a_group_are_all_found():
    groups = CROWD * 16
    given = torch.zeros(1, groups * COLUMNS)
    given[0, 3::groups] = torch.arange(1.0, COLUMNS + 1)
    assert top(given, 16)[0].tolist() == [[float(n) for n in range(COLUMNS, 0, -1)]]


def test_rows_come_out_as_they_do_alone():
    given = rows(6, 49152, False)
    together, (best, place) = top(given, 128), largest(given)
    for index, row in enumerate(given[:, None]):
        assert torch.equal(top(row, 128)[1][0], together[1][index])
        assert torch.equal(largest(row)[1][0], place[index])
        assert best[index] == 4


def test_rows_that_are_a_part_of_longer_ones():
    given = rows(3, 8300, True)[:, :8192]
    assert torch.equal(top(given, 5)[1], given.topk(5).indices)
    assert torch.equal(largest(given)[1], given.argmax(-1))
