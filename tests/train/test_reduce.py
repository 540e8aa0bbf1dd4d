"""The tree's sum has the same bits however its slots are cut into ranges."""

from __future__ import annotations

import itertools
import math
import operator
import random

from hypothesis import given
from hypothesis import strategies as st

from tidemill.plan.batch import make_batch_plan
from tidemill.train.reduce import TreeSum, are_halves, cover, sum_in_order

counts = st.integers(1, 130)
numbers = st.floats(allow_nan=False, width=32, min_value=-1e8, max_value=1e8)


def _reference(values: list[float]) -> float:
    """The sum of two halves, the shorter one first."""
    if len(values) == 1:
        return values[0]
    middle = len(values) // 2
    return _reference(values[:middle]) + _reference(values[middle:])


def _in_ranges(values: list[float], cuts: list[int]) -> float:
    """What ranks with these ranges of slots come to: each by itself, then all their nodes."""
    edges = [0, *sorted(cut % (len(values) + 1) for cut in cuts), len(values)]
    whole = TreeSum[float](len(values), operator.add)
    for first, last in itertools.pairwise(edges):
        own = TreeSum[float](len(values), operator.add)
        for slot in range(first, last):
            own.put(range(slot, slot + 1), values[slot])
        assert [node for node, _ in own.nodes] == cover(range(first, last), len(values))
        for node, value in own.take():
            whole.put(node, value)
        assert own.nodes == []
    ((node, value),) = whole.nodes
    assert node == range(len(values))
    return value


@given(st.lists(numbers, min_size=1, max_size=70), st.lists(st.integers(0, 1000), max_size=9))
def test_no_cut_changes_a_bit(values: list[float], cuts: list[int]) -> None:
    expected = _reference(values)
    assert sum_in_order(values) == expected
    assert _in_ranges(values, cuts) == expected


def test_another_order_would_be_noticed() -> None:
    random.seed(1)
    values = [random.uniform(-1, 1) for _ in range(48)]
    sums = {_in_ranges(values, [random.randrange(48) for _ in range(5)]) for _ in range(50)}
    assert len(sums) == 1
    running = {sum(values[cut:], sum(values[:cut])) for cut in range(48)}
    by_rank = {sum(values[:cut]) + sum(values[cut:]) for cut in range(48)}
    assert len(running) == 1 < len(by_rank)
    assert sums.isdisjoint(running)


def test_the_sum_of_nothing_is_nothing() -> None:
    assert sum_in_order([]) == 0.0


def test_what_is_not_a_number_stays_so() -> None:
    assert math.isnan(sum_in_order([1.0, math.nan, 2.0]))
    assert math.isnan(sum_in_order([math.inf, 1.0, -math.inf]))


@given(counts, st.integers(0, 129), st.integers(0, 129))
def test_a_range_is_few_nodes_even_while_it_grows(count: int, one: int, other: int) -> None:
    first, last = sorted((one % (count + 1), other % (count + 1)))
    parts = TreeSum[int](count, operator.add)
    for slot in range(first, last):
        parts.put(range(slot, slot + 1), 1)
        assert len(parts.nodes) <= 2 * max(1, math.ceil(math.log2(count)))
        assert [slot for node, _ in parts.nodes for slot in node] == list(range(first, slot + 1))
        assert all(len(node) == held for node, held in parts.nodes)


@given(counts, st.sampled_from([1, 2, 4]))
def test_one_two_or_four_ranks_hold_one_node_each(count: int, world: int) -> None:
    plan = make_batch_plan(max(count, world), 1, world, fixed=True)
    assert {len(cover(plan.numbers(rank), plan.count)) for rank in range(world)} == {1}


def test_halves_are_of_one_node() -> None:
    assert are_halves(range(2), range(2, 5), 5)
    assert are_halves(range(2, 3), range(3, 5), 5)
    assert not are_halves(range(1, 2), range(2, 3), 5)
    assert not are_halves(range(2), range(2, 3), 5)
    assert not are_halves(range(1), range(1, 5), 5)
