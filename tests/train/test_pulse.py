"""Beats of ranks can be compared: whoever is further in the loop has the greater one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from tests.kit.training import Memory, NoKeeper, NoStore, RaggedStream, tiny_run
from tidemill.spec.progress import Cursor, State, World
from tidemill.spec.run import ReportSpec
from tidemill.train import loop
from tidemill.train.engine import Batch, Outcome
from tidemill.train.guard import Guard
from tidemill.train.loop import Parts, train
from tidemill.train.pulse import Beat, Phase, Pulse

if TYPE_CHECKING:
    import pytest


def test_a_process_that_has_done_nothing_is_starting() -> None:
    newest = Pulse().newest
    assert (newest.step, newest.phase, newest.lap) == (-1, Phase.starting, 0)


def test_a_beat_replaces_the_one_before() -> None:
    pulse = Pulse()
    first = pulse.newest
    before_s = time.monotonic()
    pulse.beat(3, Phase.data)
    assert pulse.newest == Beat(3, Phase.data, pulse.newest.at_s)
    assert before_s <= pulse.newest.at_s <= time.monotonic()
    assert first == Beat(-1, Phase.starting, first.at_s)


def test_laps_are_counted_within_a_phase_of_a_step() -> None:
    pulse = Pulse()
    laps: list[int] = []
    for step, phase in [(3, Phase.evaluate)] * 3 + [(3, Phase.save), (4, Phase.save)]:
        pulse.beat(step, phase)
        laps.append(pulse.newest.lap)
    assert laps == [0, 1, 2, 0, 0]


class Still:
    """An engine that learns nothing."""

    def accumulate(self, *_: object, **__: object) -> torch.Tensor:
        return torch.zeros(())

    def step(self, _: float) -> Outcome:
        return Outcome(applied=True, grad_norm=0.0)

    def evaluate(self, _: Batch) -> torch.Tensor:
        return torch.zeros(())

    def state(self) -> State:
        return State({})


class HeldOut(RaggedStream):
    samples = 20


class Course(Pulse):
    """Remembers every beat."""

    def __init__(self) -> None:
        super().__init__()
        self.beats = [self.newest]

    def beat(self, step: int, phase: Phase) -> None:
        super().beat(step, phase)
        self.beats.append(self.newest)


def course_of(steps: int, leave_after: int = -1) -> Course:
    engine: Any = Still()
    course = Course()
    run = tiny_run(steps=steps, report=ReportSpec(eval_every_steps=2))
    parts = Parts(
        engine=engine,
        guard=Guard(run.precision, engine),
        stream=RaggedStream(),
        held_out=HeldOut(),
        byte_level=False,
        store=NoStore(),
        keeper=NoKeeper(),
        pulse=course,
        recorder=Memory(),
        stop_requested=lambda: False,
        save_requested=lambda: False,
        leave_requested=lambda: course.newest.step == leave_after,
    )
    train(run, parts, World(), Cursor())
    return course


def test_the_loop_never_goes_back() -> None:
    course = course_of(5)
    places = [(beat.step, beat.phase.place, beat.lap) for beat in course.beats]
    assert places == sorted(set(places))
    assert {beat.phase for beat in course.beats} == set(Phase) - {Phase.leaving, Phase.parked}
    # 20 samples are three batches of eight; the last lap adds up.
    assert [beat.lap for beat in course.beats if beat[:2] == (2, Phase.evaluate)] == [0, 1, 2, 3]


def test_a_group_that_is_to_form_anew_is_leaving() -> None:
    course = course_of(5, leave_after=2)
    assert course.newest[:2] == (3, Phase.leaving)


def test_every_step_tells_the_probe_how_long_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Noted:
        def __init__(self, device: str, pulse: Pulse) -> None:
            assert (device, type(pulse)) == ("cpu", Course)

        def note(self, wait_s: float) -> None:
            waits.append(wait_s)

    monkeypatch.setattr(loop, "Probe", Noted)
    course_of(3)
    assert len(waits) == 3
    assert min(waits) > 0
