"""Chunks of several prompts as rows of one forward: which rows are whose, and who computes them."""

import numpy as np

from tandem_server.engine.native.prompts import Part, packs, rows_of, slices_of, work_of

PARTS = [Part(2, 0, 5), Part(0, 40, 3), Part(1, 7, 1)]


def test_parts_that_fit_are_computed_together_and_one_alone_always_fits():
    assert packs(PARTS, 100) == [[0, 1, 2]]
    assert packs(PARTS, 8) == [[0, 1], [2]]
    assert packs(PARTS, 4) == [[0], [1, 2]]
    assert packs(PARTS, 0) == [[0], [1], [2]]
    assert packs([], 8) == []


def test_rows_are_the_parts_one_after_the_other():
    seats, lengths, last = rows_of(PARTS)
    assert seats.tolist() == [2, 2, 2, 2, 2, 0, 0, 0, 1]
    assert lengths.tolist() == [1, 2, 3, 4, 5, 41, 42, 43, 8]
    assert last.tolist() == [4, 7, 8]
    assert {array.dtype for array in (seats, lengths, last)} == {np.dtype(np.int32)}
    assert slices_of(PARTS) == [slice(0, 5), slice(5, 8), slice(8, 9)]


def test_work_covers_every_row_once_and_leaves_out_what_is_apart():
    work = work_of(PARTS, 2, lambda part: part.slot == 1)
    assert work.tolist() == [[7, 0, 42, 1], [5, 0, 40, 2], [4, 2, 4, 1], [2, 2, 2, 2], [0, 2, 0, 2]]
    assert work_of(PARTS, 2, lambda part: True).shape == (0, 4)
