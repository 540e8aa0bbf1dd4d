"""Marks say which samples were used, the same scalar or vectorised, whoever took them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_stream import both_streams, synthetic, take
from tidemill.data import order
from tidemill.data.places import digest_steps, find_places, mark_all
from tidemill.plan.batch import Slot, make_batch_plan

SEED = 1


def reference(first: int, count: int, size: int, seed: int) -> int:
    """A step's digest, one sample at a time."""
    marks = (order.mark(*order.place(n, size, seed)) for n in range(first, first + count))
    return sum(marks) % 2**64


@given(
    first=st.integers(0, 2**40),
    count=st.integers(1, 40),
    size=st.integers(1, 50),
    seed=st.integers(0),
)
def test_arrays_agree_with_the_reference(first: int, count: int, size: int, seed: int) -> None:
    keys = np.arange(first, first + count)
    places = find_places(keys, size, seed)
    assert places.tolist() == [order.place(key, size, seed)[1] for key in keys.tolist()]
    marks = [mark % 2**64 for mark in mark_all(keys, places, size).tolist()]
    assert marks == [order.mark(*order.place(key, size, seed)) for key in keys.tolist()]


@given(
    steps=st.sets(st.integers(0, 2**40), max_size=6),
    count=st.integers(1, 12),
    size=st.integers(1, 30),
)
def test_digests_of_steps_are_the_sums_of_their_marks(
    steps: set[int], count: int, size: int
) -> None:
    firsts = [step * count for step in sorted(steps)]
    expected = [reference(first, count, size, 5) for first in firsts]
    assert digest_steps(firsts, count, size, 5).tolist() == expected


def test_steps_far_apart_cost_no_more_than_others() -> None:
    assert len(digest_steps([0, 2**60], 4, 3, 1)) == 2


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("micro_size", [1, 3])
def test_what_ranks_took_adds_up_whatever_the_world(
    tmp_path: Path, world: int, micro_size: int
) -> None:
    plan = make_batch_plan(5, micro_size, world)
    for stream in both_streams(tmp_path):
        for first in (0, 5, 45, 1230):
            marks = [
                stream.take(first, slot).marks for rank in range(world) for slot in plan.slots(rank)
            ]
            assert sum(map(len, marks)) == 5
            total = sum(int(one.sum()) for one in marks) % 2**64
            assert total == reference(first, 5, stream.samples, SEED)


def test_a_dummy_sample_has_no_mark(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        dummy = stream.take(20, Slot(start=3, size=0))
        assert (len(dummy.keys), len(dummy.marks), dummy.marks.dtype) == (1, 0, np.int64)


def test_marks_tell_epochs_and_samples_apart() -> None:
    stream = synthetic(samples=50)
    marks = np.concatenate([take(stream, 50 * epoch, 50).marks for epoch in range(4)])
    assert len(np.unique(marks)) == 200
    assert 0 not in marks


def test_marks_are_fixed_for_good() -> None:
    """A later version must be able to audit what this one has recorded."""
    uses = ((0, 0), (0, 1), (1, 0), (7, 123_456_789))
    assert [order.mark(*use) for use in uses] == [
        0x7AB40E090F363A7D,
        0xD9BF17D113F38956,
        0x52EAD7E36EA7FEA8,
        0xC1197E05DE84EF33,
    ]
