"""A sorted list that knows the rank of each item."""

from __future__ import annotations

import pytest

from orchestrator_core.queueing.ranked_list import BLOCK_ITEMS, RankedList


def test_items_come_out_in_ascending_order_however_they_went_in() -> None:
    ranked = RankedList()

    for item in (5, 1, 9, 3):
        ranked.add(item)

    assert list(ranked) == [1, 3, 5, 9]
    assert ranked.first == 1


def test_rank_counts_smaller_items_for_present_and_absent_ones() -> None:
    ranked = RankedList()
    for item in (10, 20, 30):
        ranked.add(item)

    ranks = [ranked.rank(item) for item in (5, 10, 15, 30, 99)]

    assert ranks == [0, 0, 1, 2, 3]


@pytest.mark.req("OC-CORE-1003")
def test_ranks_stay_exact_across_many_blocks() -> None:
    ranked = RankedList()
    count = 5 * BLOCK_ITEMS
    for item in range(count):
        ranked.add(item * 7919 % count)  # 7919 is prime: a permutation

    for item in range(0, count, 2):
        ranked.remove(item)

    assert len(ranked) == count // 2
    assert ranked.rank(count // 2) == count // 4
    assert list(ranked) == list(range(1, count, 2))


def test_ranks_stay_exact_when_a_whole_block_goes() -> None:
    ranked = RankedList()
    for item in range(4 * BLOCK_ITEMS):
        ranked.add(item)

    for item in range(BLOCK_ITEMS // 2, 3 * BLOCK_ITEMS):
        ranked.remove(item)

    assert ranked.rank(3 * BLOCK_ITEMS) == BLOCK_ITEMS // 2
    assert ranked.rank(4 * BLOCK_ITEMS) == BLOCK_ITEMS // 2 + BLOCK_ITEMS


def test_removing_what_is_not_there_is_an_error() -> None:
    ranked = RankedList()
    ranked.add(2)

    for absent in (1, 3):
        with pytest.raises(KeyError):
            ranked.remove(absent)

    assert list(ranked) == [2]


def test_an_emptied_list_has_no_first_and_can_be_filled_again() -> None:
    ranked = RankedList()
    ranked.add(1)
    ranked.remove(1)

    with pytest.raises(IndexError):
        _ = ranked.first
    ranked.add(4)

    assert (ranked.first, len(ranked), ranked.rank(4)) == (4, 1, 0)
