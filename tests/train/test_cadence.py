"""When state is saved: on schedule, in time, on demand, at the end, and never twice for a step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.kit.training import tiny_run
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.progress import Cursor, State
from tidemill.train.cadence import Cadence

LAST = 30


class Notes:
    """A store that notes what it is asked to save."""

    busy = False

    def __init__(self) -> None:
        self.saved: list[tuple[int, bool]] = []
        self.finished = 0

    def save(
        self, state: State, cursor: Cursor, metrics: Mapping[str, Any], *, commit: bool = True
    ) -> None:
        del state, metrics
        self.saved.append((cursor.step, commit))

    def settle(self) -> None: ...

    def finish(self) -> None:
        self.finished += 1


def _cadence(store: Notes, requests: Any = (), **policy: Any) -> Cadence:
    asked = itertools.chain(requests, itertools.repeat(False))
    run = tiny_run(steps=LAST, checkpoint=CheckpointSpec(**policy))
    return Cadence(run, store, lambda: State({}), lambda: next(asked))


def _live(cadence: Cadence, steps: int, *, busy: bool = False) -> None:
    for step in range(1, steps + 1):
        asked = cadence.asks()
        cadence.after(Cursor(step=step, samples=step), {}, asked=asked, busy=busy)


def test_every_so_many_steps_and_at_the_end() -> None:
    store = Notes()
    cadence = _cadence(store, every_steps=3)
    _live(cadence, 7)
    cadence.finish(Cursor(step=7, samples=7), {})
    assert store.saved == [(3, True), (6, True), (7, True)]
    assert store.finished == 1


def test_a_step_is_not_saved_twice() -> None:
    store = Notes()
    cadence = _cadence(store, every_steps=3)
    _live(cadence, 6)
    cadence.finish(Cursor(step=6, samples=6), {})
    assert store.saved == [(3, True), (6, True)]
    assert store.finished == 1


def test_what_was_restored_from_memory_is_committed_before_the_end() -> None:
    store = Notes()
    _cadence(store, every_steps=3).finish(Cursor(step=6, samples=6), {})
    assert store.saved == [(6, True)]


def test_on_demand_after_the_step_that_was_asked_in() -> None:
    store = Notes()
    _live(_cadence(store, requests=[False, True], every_steps=0), 4)
    assert store.saved == [(2, True)]


def test_every_so_many_seconds_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0.0, 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    store = Notes()
    _live(_cadence(store, every_steps=0, every_s=5.0), 20)
    steps = [step for step, _ in store.saved]
    assert steps[0] == 5
    assert len({later - earlier for earlier, later in itertools.pairwise(steps)}) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_near_snapshots_are_taken_between_and_do_not_wait(busy: bool) -> None:
    store = Notes()
    _live(_cadence(store, every_steps=4, near_gib=1.0, near_every_steps=2), 8, busy=busy)
    near = [] if busy else [(2, False), (6, False)]
    assert [item for item in store.saved if not item[1]] == near
    assert [item for item in store.saved if item[1]] == [(4, True), (8, True)]


def test_the_last_step_is_committed_and_not_kept_near_first() -> None:
    store = Notes()
    cadence = _cadence(store, every_steps=0, near_gib=1.0, near_every_steps=10)
    _live(cadence, LAST)
    cadence.finish(Cursor(step=LAST, samples=LAST), {})
    assert store.saved == [(10, False), (20, False), (LAST, True)]
