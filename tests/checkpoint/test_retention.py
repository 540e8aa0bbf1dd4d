"""Which checkpoints stay follows from a few rules that add up, whatever there is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checkpoint.manifest import checkpoint_name
from tidemill.checkpoint.retention import Candidate, Keep, choose_kept, explain_kept

LOSSES = st.none() | st.floats(0, 10, allow_nan=False)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """Checkpoints of distinct names, in any order, some steps saved by several attempts."""
    keys = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), unique=True))
    return [
        Candidate(
            name=checkpoint_name(step, attempt),
            step=step,
            loss=draw(LOSSES),
            val_loss=draw(LOSSES),
        )
        for step, attempt in keys
    ]


keeps = st.builds(
    Keep, last=st.integers(1, 5), best=st.integers(0, 5), every_steps=st.integers(0, 20)
)


def at(step: int, loss: float | None = None, val_loss: float | None = None) -> Candidate:
    name = checkpoint_name(step, 1)
    return Candidate(name=name, step=step, loss=loss, val_loss=val_loss)


def steps_kept(held: list[Candidate], keep: Keep) -> list[int]:
    kept = choose_kept(held, keep)
    return sorted(one.step for one in held if one.name in kept)


@given(candidates(), keeps)
def test_the_newest_always_stays_and_nothing_is_invented(held: list[Candidate], keep: Keep) -> None:
    kept = choose_kept(held, keep)
    names = {one.name for one in held}
    assert kept <= names
    assert not names or max(names) in kept
    assert len(kept) >= min(len(names), keep.last)


@given(candidates(), keeps)
def test_rules_add_up(held: list[Candidate], keep: Keep) -> None:
    alone = (
        Keep(last=keep.last),
        Keep(best=keep.best),
        Keep(every_steps=keep.every_steps),
    )
    together = set[str]().union(*(choose_kept(held, one) for one in alone))
    assert choose_kept(held, keep) == together


@given(candidates(), keeps, st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_listed_does_not_matter(
    held: list[Candidate], keep: Keep, draw: random.Random
) -> None:
    shuffled = draw.sample(held, len(held))
    assert explain_kept(shuffled, keep) == explain_kept(held, keep)


@given(candidates(), keeps)
def test_to_prune_twice_is_to_prune_once(held: list[Candidate], keep: Keep) -> None:
    kept = choose_kept(held, keep)
    left = [one for one in held if one.name in kept]
    assert choose_kept(left, keep) == kept


@given(candidates(), keeps)
def test_what_goes_is_older_worse_and_no_multiple(held: list[Candidate], keep: Keep) -> None:
    kept = choose_kept(held, keep)
    measured = [one for one in held if one.val_loss is not None]
    for gone in (one for one in held if one.name not in kept):
        assert sum(one.name > gone.name for one in held) >= keep.last
        assert not (keep.every_steps and gone.step % keep.every_steps == 0)
        if gone.val_loss is not None:
            assert sum((one.val_loss or 0) <= gone.val_loss for one in measured) > keep.best


@given(candidates(), keeps)
def test_every_one_that_stays_has_a_reason(held: list[Candidate], keep: Keep) -> None:
    told = explain_kept(held, keep)
    assert set(told) == choose_kept(held, keep)
    assert list(told) == sorted(told, reverse=True)
    assert all(told.values())
    for one in held:
        multiple = bool(keep.every_steps) and one.step % keep.every_steps == 0
        assert multiple == any(why.startswith("multiple") for why in told.get(one.name, []))
    assert sum(any("best" in why for why in rules) for rules in told.values()) <= keep.best


def test_the_best_are_told_by_held_out_loss_where_there_is_one() -> None:
    held = [at(1, 0.1, 3.0), at(2, 0.5, 1.0), at(3, 0.2), at(4, 0.9, 2.0)]
    assert steps_kept(held, Keep(best=1)) == [2, 4]
    assert steps_kept(held, Keep(best=2)) == [2, 4]
    assert steps_kept(held, Keep(best=3)) == [1, 2, 4]
    without = [at(one.step, one.loss) for one in held]
    assert steps_kept(without, Keep(best=2)) == [1, 3, 4]


def test_of_two_equals_the_newer_is_the_best() -> None:
    assert steps_kept([at(1, 1.0), at(2, 1.0), at(3, 2.0)], Keep(best=1)) == [2, 3]


def test_a_loss_that_is_not_known_is_never_the_best() -> None:
    assert steps_kept([at(1), at(2, 5.0), at(3)], Keep(best=3)) == [2, 3]


def test_of_a_step_that_two_attempts_saved_the_later_is_newer() -> None:
    twice = [Candidate(name=checkpoint_name(5, attempt), step=5, loss=1.0) for attempt in (1, 2)]
    assert choose_kept(twice, Keep()) == {checkpoint_name(5, 2)}
    assert choose_kept(twice, Keep(every_steps=5)) == {checkpoint_name(5, 1), checkpoint_name(5, 2)}


@pytest.mark.parametrize("last", [-1, 0, 1])
def test_none_is_not_a_number_to_keep(last: int) -> None:
    assert steps_kept([at(1), at(2)], Keep(last=last)) == [2]


def test_rules_are_told_in_words() -> None:
    held = [at(500, 2.0, 1.5), at(1000, 1.0), at(1500, 1.5, 1.8), at(2000, 1.2), at(2100, 1.3)]
    assert explain_kept(held, Keep(last=2, best=2, every_steps=1000)) == {
        checkpoint_name(2100, 1): ["newest"],
        checkpoint_name(2000, 1): ["newest 2", "multiple of 1,000"],
        checkpoint_name(1500, 1): ["best 2 by held-out loss"],
        checkpoint_name(1000, 1): ["multiple of 1,000"],
        checkpoint_name(500, 1): ["best held-out loss"],
    }
