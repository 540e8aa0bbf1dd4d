"""Who holds what: which version a group may go on from, where copies lie, who gives what."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checkpoint.holdings import (
    Inventory,
    Key,
    Whole,
    choose_partners,
    find_whole,
    plan_moves,
)


def _ring(
    survivors: list[int], steps: list[int], *, of: int = 4, attempt: int = 1, reached: int = -1
) -> list[Inventory]:
    """What is left of a ring: each rank holds its own share and that of the one before it."""
    return [
        Inventory(
            shares=[
                Key(attempt, step, number % of, of) for step in steps for number in (rank, rank - 1)
            ],
            attempt=attempt,
            step=max(steps) if reached < 0 else reached,
        )
        for rank in survivors
    ]


def _found(told: list[Inventory], attempt: int = 2) -> tuple[int, int] | None:
    whole = find_whole(told, attempt)
    return (whole.attempt, whole.step) if whole else None


def test_a_version_of_which_every_share_is_held_by_somebody_is_found() -> None:
    assert find_whole(_ring([0, 2], [6, 7]), 2) == Whole(
        attempt=1, step=7, holders=((0,), (1,), (1,), (0,)), newest=True
    )
    assert _found(_ring([0, 3], [6, 7])) is None, "1 and 2 were neighbours"
    assert _found([Inventory(), *_ring([1, 3], [6, 7])]) == (1, 7), "who comes new holds nothing"
    assert _found([Inventory(), Inventory()]) is None


def test_the_newest_that_is_whole_is_taken_and_whether_there_was_more_is_known() -> None:
    told = _ring([0, 1, 2], [5, 6])
    torn = Inventory(shares=[*told[1].shares, Key(1, 7, 1, 4), Key(1, 7, 0, 4)], attempt=1, step=7)
    whole = find_whole([told[0], torn, told[2]], 2)
    assert whole is not None
    assert (whole.step, whole.newest) == (6, False)
    whole = find_whole(_ring([0, 1, 2], [5], reached=8), 2)
    assert whole is not None
    assert (whole.step, whole.newest) == (5, False), "copies are not made after every step"


def test_what_is_replicated_is_held_by_one_as_by_all() -> None:
    behind = Inventory(shares=[Key(1, 8, 0, 1)], attempt=1, step=8)
    ahead = Inventory(shares=[Key(1, 9, 0, 1)], attempt=1, step=9)
    torn = Inventory(attempt=1, step=9)
    whole = find_whole([behind, ahead, Inventory(), ahead], 2)
    assert whole == Whole(attempt=1, step=9, holders=((1, 3),), newest=True)
    whole = find_whole([behind, torn], 2)
    assert whole is not None
    assert (whole.step, whole.newest) == (8, False)


@pytest.mark.parametrize(
    ("attempt", "vain", "found"),
    [
        (1, (), None),  # of this attempt's own making
        (2, (), (1, 7)),
        (3, (), None),  # attempt 2 may have trained, and this group does not know
        (3, (2,), (1, 7)),
        (5, (2, 3), None),
        (5, (2, 3, 4), (1, 7)),
    ],
)
def test_nobody_goes_on_from_what_a_later_attempt_may_have_taken_back(
    attempt: int, vain: tuple[int, ...], found: tuple[int, int] | None
) -> None:
    who_was_there = Inventory(vain=vain)
    assert _found([*_ring([0, 2], [7]), who_was_there], attempt) == found


def test_an_attempt_that_lost_its_first_version_falls_back_if_it_never_trained() -> None:
    begun = _ring([0], [7], attempt=2)[0]
    old = _ring([0, 2], [7])
    both = [Inventory(shares=[*old[0].shares, *begun.shares], attempt=1, step=7, vain=(2,)), old[1]]
    assert _found(both, 3) == (1, 7)
    trained = [Inventory(shares=both[0].shares, attempt=2, step=7), old[1]]
    assert _found(trained, 3) is None


def test_an_inventory_survives_json() -> None:
    import json

    inventory = Inventory(shares=[Key(1, 2, 3, 4)], attempt=5, step=6, vain=[7])
    assert Inventory.from_plain(json.loads(json.dumps(inventory.plain()))) == inventory


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=12))
def test_copies_lie_on_another_node_where_that_is_possible(nodes: list[str]) -> None:
    partners = choose_partners(nodes)
    assert sorted(partners) == list(range(len(nodes)))
    assert all(rank != partner for rank, partner in enumerate(partners))
    at_home = sum(nodes[rank] == nodes[partner] for rank, partner in enumerate(partners))
    fullest = max(Counter(nodes).values())
    assert at_home == max(0, 2 * fullest - len(nodes)), "no more than must be"


def test_ranks_of_unknown_nodes_form_a_ring() -> None:
    assert choose_partners([""] * 4) == [1, 2, 3, 0]
    assert choose_partners(["a", "b", "c"]) == [1, 2, 0]
    assert choose_partners(["a", "a", "b", "b"]) == [2, 3, 0, 1]


def test_those_who_leave_give_what_nobody_who_stays_holds() -> None:
    ring = [[rank, (rank - 1) % 4] for rank in range(4)]
    assert plan_moves([True] * 4, ring) == []
    assert plan_moves([True, False, True, False], ring) == [], "each was held by the next one"
    assert plan_moves([True, False, False, True], ring) == [(1, 1, 0)]
    assert plan_moves([True, False, False, False], ring) == [(1, 1, 0), (2, 2, 0)]
    assert plan_moves([False] * 4, ring) == []
    three = [[rank, (rank - 1) % 6] for rank in range(6)]
    moves = plan_moves([True, True, False, False, False, False], three)
    assert moves == [(2, 2, 0), (3, 3, 1), (4, 4, 0)]
