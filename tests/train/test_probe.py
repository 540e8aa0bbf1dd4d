"""A rank measures itself now and then, for a share of the time, and shows the median."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from tidemill.train import probe as module
from tidemill.train.probe import SHARE, WINDOW, CudaWork, Probe
from tidemill.train.pulse import Pulse, Reading


class Clock:
    """Time that passes only when something is done."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


class Work:
    """Takes the given times, one after the other; elsewhere, if it is not waited for."""

    def __init__(self, clock: Clock, times_s: Iterator[float | None]) -> None:
        self.clock, self.times_s, self.done = clock, times_s, 0
        self.waited_for = True

    def do(self) -> float | None:
        took_s = next(self.times_s)
        self.clock.now_s += (took_s or 0.001) if self.waited_for else 1e-5
        self.done += 1
        return took_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def make(clock: Clock, *times_s: float | None) -> tuple[Probe, Pulse, Work]:
    pulse = Pulse()
    probe = Probe("cpu", pulse)
    work = probe._work = Work(clock, iter(times_s))  # pyright: ignore[reportAttributeAccessIssue]
    return probe, pulse, work


@pytest.mark.parametrize("waited_for", [True, False])
def test_it_takes_its_share_of_the_time_and_no_more(waited_for: bool, clock: Clock) -> None:
    probe, _, work = make(clock, *[0.002] * 1000)
    work.waited_for = waited_for
    before_s = clock.now_s
    for _ in range(10_000):
        clock.now_s += 0.01
        probe.note(0.0)
    assert work.done * 0.002 / (clock.now_s - before_s) == pytest.approx(SHARE, rel=0.05)


def test_a_reading_is_the_median_of_the_newest(clock: Clock) -> None:
    times_s = [0.9] * 5 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 9.0, 9.0]
    probe, pulse, _ = make(clock, *times_s)
    for _ in times_s:
        clock.now_s += 1e6
        probe.note(0.0)
    assert pulse.reading == Reading(number=len(times_s), compute_s=0.5, data_s=0.0)
    assert len(times_s) > WINDOW


def test_waits_for_data_are_spread_over_the_steps(clock: Clock) -> None:
    probe, pulse, _ = make(clock, *[0.001] * 3)
    for wait_s in (0.0, 0.3, 0.0, 0.5):  # measured at the first step, and after a second
        probe.note(wait_s)
        clock.now_s += 0.4
    assert pulse.reading is not None
    assert (pulse.reading.number, pulse.reading.data_s) == (2, pytest.approx(0.8 / 4))


def test_what_could_not_be_measured_is_no_reading(clock: Clock) -> None:
    probe, pulse, work = make(clock, None, 0.001)
    probe.note(0.25)
    assert (work.done, pulse.reading) == (1, None)
    clock.now_s += 1e6
    probe.note(0.25)
    assert pulse.reading == Reading(number=1, compute_s=0.001, data_s=0.25)


def test_a_reading_that_was_shown_does_not_change(clock: Clock) -> None:
    probe, pulse, _ = make(clock, 0.001, 0.002)
    probe.note(0.0)
    first = pulse.reading
    clock.now_s += 1e6
    probe.note(0.0)
    assert first == Reading(number=1, compute_s=0.001, data_s=0.0)
    assert pulse.reading != first


def test_work_on_a_cpu_is_measured() -> None:
    pulse = Pulse()
    Probe("cpu", pulse).note(0.0)
    assert pulse.reading is not None
    assert pulse.reading.compute_s > 0


class Event:
    """A CUDA event, on a GPU that takes a quarter of a second for all it was given before."""

    given: ClassVar[list[str]] = []

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.reached = True

    def record(self) -> None:
        self.given.append("mark")

    def query(self) -> bool:
        return self.reached

    def elapsed_time(self, _: Event) -> float:
        return 250.0


def test_work_on_a_gpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.cuda, "Event", Event)
    monkeypatch.setattr(CudaWork, "SIZE", 8)
    monkeypatch.setattr(CudaWork, "_multiply", lambda _: Event.given.append("work"))
    Event.given.clear()
    work = CudaWork("cpu")
    assert work.do() is None
    assert Event.given == ["work", "mark", "work", "mark"]
    work._marks[1].reached = False  # pyright: ignore[reportAttributeAccessIssue]
    assert work.do() is None
    assert len(Event.given) == 4
    work._marks[1].reached = True  # pyright: ignore[reportAttributeAccessIssue]
    assert work.do() == 0.25
    assert Event.given[4:] == ["mark", "work", "mark"]


@pytest.mark.gpu
def test_work_on_a_gpu_takes_about_a_millisecond() -> None:
    work = CudaWork("cuda:0")
    work.do()
    torch.cuda.synchronize()
    took_s = work.do()
    assert took_s is not None
    assert took_s > 0
