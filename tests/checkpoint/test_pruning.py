"""What may go is decided before it goes; the newest whole one never does, nor what is in use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint.commits import commit, tear
from tidemill.checkpoint.inspect import Condition, Held, look, survey
from tidemill.checkpoint.manifest import checkpoint_name
from tidemill.checkpoint.pruning import QUIET_S, Signs, Verdict, carry_out, judge, why_left_over
from tidemill.checkpoint.retention import Keep
from tidemill.errors import StorageError
from tidemill.storage import Location, locate

NOW_S = 2e9
RUN = locate("/runs/mill")
SIGNS = Signs(attempt=1, over=frozenset(), last_s=NOW_S - 60, now_s=NOW_S)


def held(step: int, condition: Condition = Condition.whole, attempt: int = 1) -> Held:
    return Held(
        place=RUN / checkpoint_name(step, attempt),
        step=step,
        attempt=attempt,
        condition=condition,
        changed_s=NOW_S - 30,
    )


@st.composite
def shelves(draw: st.DrawFn) -> list[Held]:
    """What may lie in a run's directory, newest first."""
    keys = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), unique=True))
    conditions = st.sampled_from(Condition)
    return [held(step, draw(conditions), attempt) for step, attempt in sorted(keys, reverse=True)]


keeps = st.builds(
    Keep, last=st.integers(0, 4), best=st.integers(0, 3), every_steps=st.integers(0, 20)
)
signs = st.builds(
    Signs,
    attempt=st.integers(0, 4),
    over=st.frozensets(st.integers(1, 3)),
    last_s=st.sampled_from([0.0, NOW_S - 60, NOW_S - 2 * QUIET_S]),
    now_s=st.just(NOW_S),
)


def steps_that_go(found: list[Held], keep: Keep, seen: Signs = SIGNS) -> list[int]:
    return [verdict.held.step for verdict in judge(found, keep, seen) if not verdict.stays]


@given(shelves(), keeps, signs)
def test_three_things_never_go(found: list[Held], keep: Keep, seen: Signs) -> None:
    verdicts = judge(found, keep, seen)
    assert [verdict.held for verdict in verdicts] == found
    assert all(verdict.why for verdict in verdicts)
    newest = next((one for one in found if one.is_whole), None)
    for verdict in verdicts:
        if not verdict.stays:
            assert verdict.held is not newest
            assert verdict.held.condition is not Condition.unreadable
            assert verdict.held.condition is not Condition.torn or (
                verdict.held.attempt < seen.attempt or verdict.held.attempt in seen.over
            )


@given(shelves(), keeps, signs)
def test_what_is_not_whole_pushes_out_nothing(found: list[Held], keep: Keep, seen: Signs) -> None:
    whole = [one for one in found if one.is_whole]
    alone = {verdict.held.place.name for verdict in judge(whole, keep, seen) if verdict.stays}
    among = {
        verdict.held.place.name
        for verdict in judge(found, keep, seen)
        if verdict.stays and verdict.held.is_whole
    }
    assert among == alone


def test_rules_keep_whole_ones_and_are_told() -> None:
    verdicts = judge([held(step) for step in (50, 40, 30, 20)], Keep(last=1, every_steps=20), SIGNS)
    assert [(verdict.held.step, verdict.stays, verdict.why) for verdict in verdicts] == [
        (50, True, "newest"),
        (40, True, "multiple of 20"),
        (30, False, "no rule keeps it"),
        (20, True, "multiple of 20"),
    ]


def test_damage_goes_once_a_newer_one_is_whole() -> None:
    found = [held(30, Condition.corrupt), held(20), held(10, Condition.corrupt)]
    assert steps_that_go(found, Keep()) == [10]
    assert steps_that_go([found[0], found[2]], Keep()) == []


def test_what_storage_does_not_show_stays() -> None:
    assert steps_that_go([held(20), held(10, Condition.unreadable)], Keep()) == []


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (SIGNS, ""),
        (replace(SIGNS, attempt=0), ""),
        (replace(SIGNS, attempt=2), "left over: attempt 2 has begun since"),
        (replace(SIGNS, over=frozenset({1})), "left over: attempt 1 has ended"),
        (replace(SIGNS, over=frozenset({2})), ""),
        (replace(SIGNS, last_s=0.0), ""),
        (replace(SIGNS, now_s=NOW_S + QUIET_S), "left over: nothing has changed for a day"),
        (replace(SIGNS, now_s=NOW_S + QUIET_S, last_s=NOW_S + QUIET_S - 60), ""),
    ],
)
def test_what_a_run_may_be_writing_stays(seen: Signs, told: str) -> None:
    torn = held(20, Condition.torn)
    assert why_left_over(torn, seen) == told
    assert steps_that_go([torn], Keep(), seen) == ([20] if told else [])


def test_an_empty_directory_of_unknown_age_stays() -> None:
    torn = replace(held(20, Condition.torn), changed_s=0.0)
    assert why_left_over(torn, replace(SIGNS, now_s=NOW_S + 9 * QUIET_S)) == ""


def test_a_manifest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tidemill import storage

    commit(tmp_path, 10)
    (found,) = survey(locate(str(tmp_path)))
    remove = storage.remove
    removed: list[str] = []

    def note(place: Location) -> None:
        removed.append(place.name)
        if len(removed) > 1:
            raise StorageError("cannot remove: the disk failed")
        remove(place)

    monkeypatch.setattr(storage, "remove", note)
    with pytest.raises(StorageError, match="disk failed"):
        carry_out(Verdict(found, stays=False, why=""))
    assert removed == ["manifest.json", "step-0000000010-a0001"]
    assert look(found.place).condition is Condition.torn
    monkeypatch.undo()
    assert carry_out(Verdict(look(found.place), stays=False, why=""))
    assert survey(locate(str(tmp_path))) == []


def test_what_has_become_a_checkpoint_since_is_not_removed(tmp_path: Path) -> None:
    place = tear(tmp_path, 10)
    (torn,) = survey(locate(str(tmp_path)))
    (place / "manifest.json").write_bytes(b"committed")
    assert not carry_out(Verdict(torn, stays=False, why=""))
    assert (place / "rank-00000.bin").exists()
