"""What a process keeps between groups, and what it says of a change."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from tests.kit.training import Memory, NoKeeper
from tidemill.launch import kept as module
from tidemill.launch.kept import KEPT, Announced, Kept
from tidemill.spec.progress import Cursor, EventKind
from tidemill.train.pulse import Phase


def test_a_new_group_begins_with_nothing_that_was_asked_of_the_old_one() -> None:
    kept = Kept()
    kept.ask_to_leave(stays=False)
    kept.saving.set()
    kept.released.set()
    kept.attempt, kept.ended_s = 3, 1.0
    kept.begin({"cause": "grow"})
    assert (kept.stays, kept.attempt, kept.ended_s) == (True, 0, 0.0)
    assert not any(event.is_set() for event in (kept.saving, kept.leaving, kept.released))
    assert kept.pulse.newest.phase is Phase.starting


def test_a_wish_for_a_checkpoint_is_taken_once() -> None:
    kept = Kept()
    kept.saving.set()
    assert (kept.take_saving(), kept.take_saving()) == (True, False)


def test_ranks_meet_at_a_store_that_is_open_before_anybody_comes() -> None:
    kept = Kept()
    told = kept.open_meeting("127.0.0.1")
    store = kept.take_meeting()
    assert store is not None
    assert told == {"address": "127.0.0.1", "port": store.port}
    assert kept.take_meeting() is None, "its group has it now"


def test_a_process_is_parked_once_its_thread_has_ended() -> None:
    kept = Kept()
    thread = threading.Thread(target=kept.released.wait)
    thread.start()
    assert kept.park(thread, patience_s=10.0)
    assert kept.leaving.is_set()
    assert kept.park(None, patience_s=1.0)
    kept.spoilt = True
    assert not kept.park(None, patience_s=1.0)


def test_a_thread_that_does_not_end_spoils_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off: list[bool] = []
    monkeypatch.setattr(module, "abort_groups", lambda: broken_off.append(True))
    kept, end = Kept(), threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert not kept.park(thread, patience_s=0.1)
    assert broken_off == [True]
    end.set()
    thread.join()


@pytest.mark.parametrize("cause", ["start", "kill"])
def test_a_change_is_told_with_the_first_step_after_it(
    cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 50.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(KEPT, "rejoin", {"cause": cause, "join_s": 1.0, "meeting": {"port": 1}})
    monkeypatch.setattr(KEPT, "reached", 9)
    monkeypatch.setattr(KEPT, "stepped_s", 40.0)
    recorder = Memory()
    keeper = Announced(cast("Any", NoKeeper()), recorder, 48.0, Cursor(step=7, samples=56))
    now_s = 53.0
    keeper.commit(Cursor(step=8, samples=64))
    now_s = 54.0
    keeper.commit(Cursor(step=9, samples=72))
    told = recorder.all(EventKind.rejoined)
    assert KEPT.reached == 9
    if cause == "start":
        assert told == []
    else:
        (fields,) = told
        assert fields == {
            "step": 8,
            "cause": "kill",
            "join_s": 1.0,
            "load_s": 2.0,
            "first_step_s": 3.0,
            "stall_s": 13.0,
            "redone": 2,
        }
