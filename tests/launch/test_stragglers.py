"""A rank that is slow by itself is told once, whatever the steps take; a busy moment is not."""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.launch.stragglers import Lack, Straggler, Stragglers
from tidemill.train.pulse import Reading

STEP_S = 0.5
MANY = 60


def readings(
    number: int, compute_s: Mapping[int, float], data_s: float = 0.0
) -> dict[int, Reading]:
    return {
        rank: Reading(number=number, compute_s=seconds, data_s=data_s)
        for rank, seconds in compute_s.items()
    }


def told(feed: Callable[[int], dict[int, Reading]], count: int = MANY) -> list[Straggler]:
    stragglers = Stragglers()
    return [one for number in range(count) for one in stragglers.feed(feed(number), STEP_S)]


def test_a_rank_that_computes_slowly_is_told_once() -> None:
    (straggler,) = told(lambda number: readings(number, {0: 1.0, 1: 1.0, 2: 1.8}))
    assert straggler == Straggler(2, Lack.compute, 1.8)


def test_of_two_ranks_the_slower_one_is_told() -> None:
    (straggler,) = told(lambda number: readings(number, {0: 3.0, 1: 1.0}))
    assert straggler == Straggler(0, Lack.compute, 3.0)


def test_a_rank_that_waits_for_data_is_told_by_what_it_costs() -> None:
    def feed(number: int) -> dict[int, Reading]:
        waits = {0: 0.0, 1: 0.25, 2: 0.0}
        return {r: Reading(number=number, compute_s=1.0, data_s=s) for r, s in waits.items()}

    assert told(feed) == [Straggler(1, Lack.data, 2.0)]


def test_a_wait_that_costs_next_to_nothing_is_not_told() -> None:
    def feed(number: int) -> dict[int, Reading]:
        waits = {0: 0.001, 1: 0.04}
        return {r: Reading(number=number, compute_s=1.0, data_s=s) for r, s in waits.items()}

    assert told(feed) == []


def test_a_wait_that_all_share_is_no_rank_of_its_own() -> None:
    assert told(lambda number: readings(number, {0: 1.0, 1: 1.0}, data_s=0.4)) == []


def test_one_rank_alone_has_nobody_to_be_compared_with() -> None:
    assert told(lambda number: readings(number, {0: 9.0})) == []


@pytest.mark.parametrize(("slow_for", "expected"), [(18, 0), (19, 1)])
def test_it_must_last(slow_for: int, expected: int) -> None:
    def feed(number: int) -> dict[int, Reading]:
        return readings(number, {0: 1.0, 1: 2.0 if 20 <= number < 20 + slow_for else 1.0})

    assert len(told(feed)) == expected


def test_an_old_reading_counts_once() -> None:
    assert told(lambda number: readings(number // 10, {0: 1.0, 1: 2.0})) == []


@pytest.mark.parametrize(("between", "expected"), [(1.4, 1), (1.1, 2)])
def test_it_is_told_again_only_after_it_has_recovered(between: float, expected: int) -> None:
    def feed(number: int) -> dict[int, Reading]:
        return readings(number, {0: 1.0, 1: between if 20 <= number < 30 else 2.0})

    assert len(told(feed)) == expected


@settings(max_examples=15)
@given(chance=st.randoms(use_true_random=True), ranks=st.integers(2, 6), busy=st.floats(0.0, 0.15))
def test_noise_is_no_straggler(chance: random.Random, ranks: int, busy: float) -> None:
    """Each measurement may hit a busy moment; a reading is the median of the newest nine."""
    newest = {rank: deque[float](maxlen=9) for rank in range(ranks)}

    def feed(number: int) -> dict[int, Reading]:
        for times in newest.values():
            taken = chance.lognormvariate(0.0, 0.1) * (10.0 if chance.random() < busy else 1.0)
            times.append(taken)
        return readings(number, {rank: statistics.median(t) for rank, t in newest.items()})

    assert told(feed, 200) == []
