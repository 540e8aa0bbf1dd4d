"""A failure that happens again ends a run that others would only interrupt."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.errors import CheckpointError, HopelessError, SpecError, TidemillError, TrainingError
from tidemill.launch.judge import TIMES, Fault, Judge, Verdict

LOST = (Fault.kill, Fault.hang, Fault.preempted)


def bug(what: str = "ValueError: low water", rank: int = 1) -> TrainingError:
    return TrainingError(f"rank {rank} failed: {what}", "Traceback: ...", rank)


def verdicts(
    *failures: tuple[TidemillError, int | None, Fault], max_failures: int = -1
) -> list[Verdict]:
    judge = Judge(max_failures)
    return [judge.judge(*failure) for failure in failures]


def goes_on(
    *failures: tuple[TidemillError, int | None, Fault], max_failures: int = -1
) -> list[bool]:
    return [verdict.go_on for verdict in verdicts(*failures, max_failures=max_failures)]


def told(verdict: Verdict) -> str:
    assert isinstance(verdict.error, HopelessError)
    assert verdict.error.exit_code == 3
    return str(verdict.error)


# --- the same again --------------------------------------------------------------------------


def test_the_same_exception_at_the_same_step_twice_is_the_end() -> None:
    first, second = verdicts((bug(), 7, Fault.error), (bug(), 7, Fault.error))
    assert first.go_on
    assert told(second) == (
        "failed twice in the same way at step 7: rank 1 failed: ValueError: low water"
    )
    assert second.error is not None
    assert vars(second.error) == vars(bug())


@pytest.mark.parametrize(
    "again",
    [
        bug(rank=0),
        bug("ValueError: low water"),
    ],
)
def test_another_rank_makes_no_difference(again: TrainingError) -> None:
    assert goes_on((bug(), 7, Fault.error), (again, 7, Fault.error)) == [True, False]


def test_numbers_and_addresses_make_no_difference() -> None:
    one = bug("IndexError: index 17 is out of bounds in <Batch at 0x7f3a91>")
    two = bug("IndexError: index 3 is out of bounds in <Batch at 0x7feed0>", rank=2)
    assert goes_on((one, 7, Fault.error), (two, 7, Fault.error)) == [True, False]


def test_another_exception_or_another_step_is_another_failure() -> None:
    other = bug("KeyError: 'ebb'")
    assert all(goes_on((bug(), 7, Fault.error), (other, 7, Fault.error), (bug(), 8, Fault.error)))


def test_what_lies_between_makes_no_difference() -> None:
    kill = TrainingError("rank 0 was lost")
    failures = [(bug(), 7, Fault.error), (kill, 7, Fault.kill), (bug(), 7, Fault.error)]
    assert goes_on(*failures) == [True, True, False]


def test_going_back_is_no_progress() -> None:
    """A run that goes on from an older state fails on its way to where it was before."""
    failures = [(bug(), 60, Fault.error), (bug("KeyError"), 55, Fault.error)]
    assert goes_on(*failures, (bug(), 60, Fault.error)) == [True, True, False]


@pytest.mark.parametrize("fault", LOST)
def test_what_can_be_bad_luck_must_happen_three_times(fault: Fault) -> None:
    lost = TrainingError("rank 1 was lost")
    assert goes_on(*[(lost, 7, fault)] * 3) == [True, True, False]
    assert all(goes_on(*[(lost, step // 2, fault) for step in range(2, 100)]))


@pytest.mark.parametrize("fault", LOST)
def test_bad_luck_on_the_way_back_is_none_of_the_run(fault: Fault) -> None:
    """Whoever lost all state begins far back, and may be lost there as well."""
    lost = TrainingError("rank 1 was lost")
    steps = (250, 30, 90, 120, 60)
    assert all(goes_on(*[(lost, step, fault) for step in steps]))
    assert goes_on(*[(lost, step, fault) for step in (250, 249, 30, 250)])[3] is False


@pytest.mark.parametrize("fault", LOST)
def test_what_is_lost_on_the_way_to_a_step_says_nothing_about_the_step(fault: Fault) -> None:
    judge, lost = Judge(-1), TrainingError("rank 1 was lost")
    judge.judge(lost, 7, fault)
    assert all(judge.judge(lost, 7, fault, trained=False).go_on for _ in range(20))
    assert judge.judge(lost, 7, fault).go_on
    assert not judge.judge(lost, 7, fault).go_on


def test_an_exception_on_the_way_to_a_step_does() -> None:
    judge = Judge(-1)
    assert judge.judge(bug(), 7, Fault.error, trained=False).go_on
    assert not judge.judge(bug(), 7, Fault.error, trained=False).go_on


@pytest.mark.parametrize(
    ("what", "keys"),
    [
        (
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            ("batch.micro_size", "memory.recompute=blocks", "memory.offload=optimizer"),
        ),
        ("MemoryError", ("batch.micro_size", "memory.offload=none")),
    ],
)
def test_a_lack_of_memory_comes_with_advice(what: str, keys: tuple[str, ...]) -> None:
    first, second = verdicts((bug(what), 7, Fault.oom), (bug(f"{what}!", rank=0), 7, Fault.oom))
    assert first.go_on
    assert all(key in told(second) for key in keys)


def test_processes_that_are_killed_over_and_over_may_be_too_large() -> None:
    *_, last = verdicts(*[(TrainingError("rank 1 was lost"), 7, Fault.kill)] * 3)
    assert told(last).startswith("failed 3 times in the same way at step 7: rank 1 was lost; if ")
    assert "batch.micro_size" in told(last)


# --- what no second try cures ----------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [SpecError("a", "b", "c"), CheckpointError("none is whole"), HopelessError("skipped")],
    ids=repr,
)
def test_what_tidemill_refuses_is_the_end_at_once(refusal: TidemillError) -> None:
    (verdict,) = verdicts((refusal, 7, Fault.refusal))
    assert verdict.error is refusal


@pytest.mark.parametrize("step", [None, 0])
def test_an_exception_in_or_before_the_first_step_is_a_mistake_and_told_as_it_is(
    step: int | None,
) -> None:
    (verdict,) = verdicts((bug(), step, Fault.error))
    assert told(verdict) == str(bug())
    assert vars(verdict.error or bug("?")) == vars(bug())
    # What Tidemill itself ran into may pass.
    assert goes_on((TrainingError("a snapshot was lost"), None, Fault.error)) == [True]


def test_a_run_without_a_step_is_given_one_more_try() -> None:
    lost = [TrainingError(f"rank {rank} was lost") for rank in (0, 1)]
    first, second = verdicts((lost[0], None, Fault.kill), (lost[1], None, Fault.kill))
    assert first.go_on
    assert told(second).startswith("failed twice in or before its first step: rank 1 was lost")


def test_machines_that_leave_as_announced_are_no_fault_of_a_run_without_a_step() -> None:
    left = TrainingError("rank 1 was lost: node aa was preempted")
    lost = TrainingError("rank 1 was lost")
    assert goes_on(*[(left, None, Fault.preempted)] * 2, (lost, None, Fault.kill)) == [True] * 3


def test_a_first_step_is_progress() -> None:
    lost = TrainingError("rank 1 was lost")
    assert all(goes_on((lost, None, Fault.kill), (bug("B"), 1, Fault.error)))


# --- how many --------------------------------------------------------------------------------


def rising(steps: Iterable[int]) -> list[tuple[TidemillError, int | None, Fault]]:
    return [(bug(chr(65 + number)), step, Fault.error) for number, step in enumerate(steps)]


def test_no_more_failures_in_a_row_than_allowed() -> None:
    assert goes_on(*rising([7] * 4), max_failures=3) == [True, True, True, False]
    *_, last = verdicts(*rising([7] * 4), max_failures=3)
    assert last.failures == 4
    assert told(last) == (
        "failed 4 times in a row without progress, scale.max_failures=3 bears no more: "
        "rank 1 failed: D"
    )
    assert goes_on(*rising([7]), max_failures=0) == [False]
    assert all(goes_on(*rising([7] * 20)))


def test_progress_begins_the_count_anew() -> None:
    judged = verdicts(*rising([7, 7, 9, 8, 9, 10, 10, 10]), max_failures=3)
    assert [verdict.failures for verdict in judged] == [1, 2, 1, 2, 3, 1, 2, 3]
    assert all(verdict.go_on for verdict in judged)


def test_machines_that_leave_as_announced_do_not_count() -> None:
    left = TrainingError("rank 1 was lost: node aa was preempted")
    failures = [(left, 7, Fault.preempted), (bug(), 7, Fault.error), (left, 7, Fault.preempted)]
    assert [verdict.failures for verdict in verdicts(*failures, max_failures=1)] == [0, 1, 1]
    assert all(goes_on(*failures, max_failures=1))


@settings(max_examples=30)
@given(chance=st.randoms(use_true_random=True), allowed=st.integers(0, 5))
def test_no_run_burns_money_for_ever(chance: random.Random, allowed: int) -> None:
    """Whatever happens: without progress it ends, and with progress every time it never does."""
    stuck = Judge(allowed)
    for _ in range(2 * sum(TIMES.values()) + allowed):
        fault = chance.choice([fault for fault in Fault if fault is not Fault.refusal])
        if not stuck.judge(bug(chance.choice("ABC")), 7, fault).go_on:
            break
    else:
        pytest.fail("it goes on for ever")
    if allowed:
        moving = Judge(allowed)
        assert all(moving.judge(bug(), step, chance.choice(LOST)).go_on for step in range(100))
