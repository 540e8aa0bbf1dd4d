"""Slots of all ranks deal the step's samples exactly, whatever the world."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import SpecError
from tidemill.plan.batch import Slot, make_batch_plan

sizes = st.integers(1, 300)
worlds = st.integers(1, 40)


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_slots_partition_the_step(global_size: int, micro_size: int, world: int) -> None:
    plan = make_batch_plan(global_size, micro_size, world)
    slots = [slot for rank in range(world) for slot in plan.slots(rank)]
    dealt = [slot.start + n for slot in slots for n in range(slot.size)]
    assert sorted(dealt) == list(range(global_size))
    assert all(0 <= slot.start <= global_size for slot in slots)


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_slots_are_even_and_fit(global_size: int, micro_size: int, world: int) -> None:
    plan = make_batch_plan(global_size, micro_size, world)
    held = [slot.size for rank in range(world) for slot in plan.slots(rank)]
    assert max(held) - min(held) <= 1
    assert max(held) <= micro_size


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_every_rank_runs_as_many_slots(global_size: int, micro_size: int, world: int) -> None:
    plan = make_batch_plan(global_size, micro_size, world)
    assert {len(plan.slots(rank)) for rank in range(world)} == {plan.accumulate}


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_no_fewer_slots_would_do(global_size: int, micro_size: int, world: int) -> None:
    plan = make_batch_plan(global_size, micro_size, world)
    assert (plan.accumulate - 1) * world * micro_size < global_size
    assert (plan.global_size, plan.world) == (global_size, world)


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_a_slot_weighs_one_unless_it_is_empty(
    global_size: int, micro_size: int, world: int
) -> None:
    plan = make_batch_plan(global_size, micro_size, world)
    for rank in range(world):
        assert all(slot.weight == (1 if slot.size else 0) for slot in plan.slots(rank))


def test_three_samples_on_four_ranks_leave_one_slot_empty() -> None:
    plan = make_batch_plan(3, 1, 4)
    assert plan.accumulate == 1
    assert [plan.slots(rank) for rank in range(4)] == [
        (Slot(start=0, size=1),),
        (Slot(start=1, size=1),),
        (Slot(start=2, size=1),),
        (Slot(start=3, size=0),),
    ]
    assert [plan.slots(rank)[0].weight for rank in range(4)] == [1, 1, 1, 0]


def test_slots_go_round_the_ranks_in_turn() -> None:
    plan = make_batch_plan(8, 2, 2)
    assert plan.slots(0) == (Slot(start=0, size=2), Slot(start=4, size=2))
    assert plan.slots(1) == (Slot(start=2, size=2), Slot(start=6, size=2))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, 1, 1), "batch.global_size"),
        ((1, 0, 1), "batch.micro_size"),
        ((1, 1, 0), "scale.workers"),
    ],
)
def test_what_is_below_one_is_refused_by_key(arguments: tuple[int, int, int], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_batch_plan(*arguments)
    assert caught.value.key == key


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_fixed_slots_are_those_of_one_rank_dealt_in_ranges(
    global_size: int, micro_size: int, world: int
) -> None:
    alone = make_batch_plan(global_size, micro_size, 1).slots(0)
    plan = make_batch_plan(global_size, micro_size, world, fixed=True)
    dealt = [slot for rank in range(world) for slot in plan.slots(rank) if slot.size]
    assert tuple(dealt) == alone
    numbers = [number for rank in range(world) for number in plan.numbers(rank)]
    assert numbers == list(range(plan.count)) == list(range(len(alone)))


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_fixed_slots_take_no_longer(global_size: int, micro_size: int, world: int) -> None:
    plan = make_batch_plan(global_size, micro_size, world, fixed=True)
    assert plan.accumulate == make_batch_plan(global_size, micro_size, world).accumulate
    assert plan.accumulate == max(len(plan.numbers(rank)) for rank in range(world))
    assert plan.numbers(world - 1)[-1] == plan.count - 1  # the last slot is the last rank's


@given(global_size=sizes, micro_size=sizes, world=worlds)
def test_numbers_are_the_places_of_slots_in_the_step(
    global_size: int, micro_size: int, world: int
) -> None:
    plan = make_batch_plan(global_size, micro_size, world)
    placed = {
        number: slot
        for rank in range(world)
        for number, slot in zip(plan.numbers(rank), plan.slots(rank), strict=True)
    }
    ends = [placed[number].start + placed[number].size for number in range(plan.count)]
    assert [placed[number].start for number in range(plan.count)] == [0, *ends[:-1]]


def test_a_rank_without_fixed_slots_runs_a_dummy() -> None:
    plan = make_batch_plan(4, 2, 3, fixed=True)
    assert [plan.slots(rank) for rank in range(3)] == [
        (Slot(start=4, size=0),),
        (Slot(start=0, size=2),),
        (Slot(start=2, size=2),),
    ]
