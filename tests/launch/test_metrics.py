"""Gauges show the last step and the last checkpoint; the event log gets everything regardless."""

from __future__ import annotations

import math
import time

import pytest

from tests.kit.training import Memory
from tidemill.launch import metrics
from tidemill.launch.metrics import GAUGES, MeteredRecorder
from tidemill.spec.progress import EventKind, World

STEP = {
    "step": 4,
    "loss": 2.5,
    "lr": 1e-3,
    "grad_norm": math.inf,
    "applied": False,
    "tokens": 300,
    "seconds": 0.5,
    "samples": 40,
}


class Gauge(metrics.Gauge):
    """Ray's own gauge, which checks names, tags and values, and keeps the last value."""

    shown: dict[str, float]
    tags: dict[str, dict[str, str]]

    def set_default_tags(self, default_tags: dict[str, str]) -> Gauge:
        self.tags[self.info["name"]] = default_tags
        return super().set_default_tags(default_tags)

    def _record(self, value: float, tags: dict[str, str] | None = None) -> None:  # noqa: ARG002
        self.shown[self.info["name"]] = value


@pytest.fixture
def gauge(monkeypatch: pytest.MonkeyPatch) -> type[Gauge]:
    monkeypatch.setattr(Gauge, "shown", {}, raising=False)
    monkeypatch.setattr(Gauge, "tags", {}, raising=False)
    monkeypatch.setattr(metrics, "Gauge", Gauge)
    return Gauge


def test_a_step_is_shown_and_passed_on(gauge: type[Gauge]) -> None:
    memory = Memory()
    recorder = MeteredRecorder(memory, "mill", World(size=3))
    assert gauge.shown == {"tidemill_workers": 3, "tidemill_checkpoint_failures": 0}
    recorder.record(EventKind.step, **STEP)
    assert gauge.shown == {
        "tidemill_workers": 3,
        "tidemill_checkpoint_failures": 0,
        "tidemill_loss": 2.5,
        "tidemill_lr": 1e-3,
        "tidemill_grad_norm": math.inf,
        "tidemill_step": 5,
        "tidemill_tokens_per_second": 600.0,
    }
    assert gauge.tags == {name: {"run": "mill"} for name in map("tidemill_{}".format, GAUGES)}
    assert memory.heard == [(EventKind.step, STEP)]


def test_a_checkpoint_is_shown(gauge: type[Gauge]) -> None:
    memory = Memory()
    recorder = MeteredRecorder(memory, "mill", World())
    before_s = time.time()
    recorder.record(EventKind.checkpoint_saved, step=7, bytes=9, seconds=0.4, stall_s=0.002)
    recorder.record(EventKind.near_kept, step=9, nodes=2, bytes=9, seconds=0.1)
    at_s = gauge.shown.pop("tidemill_checkpoint_timestamp_seconds")
    assert before_s <= at_s <= time.time()
    assert gauge.shown == {
        "tidemill_workers": 1,
        "tidemill_checkpoint_step": 7,
        "tidemill_checkpoint_seconds": 0.4,
        "tidemill_checkpoint_stall_seconds": 0.002,
        "tidemill_checkpoint_failures": 0,
        "tidemill_near_step": 9,
    }
    assert len(memory.heard) == 2


def test_failures_are_counted_until_a_checkpoint_is_good(gauge: type[Gauge]) -> None:
    recorder = MeteredRecorder(Memory(), "mill", World())
    shown: list[float] = []
    for kind in ("failed", "failed", "saved", "failed"):
        recorder.record(EventKind(f"checkpoint_{kind}"), step=7, seconds=0.4, stall_s=0.0)
        shown.append(gauge.shown["tidemill_checkpoint_failures"])
    assert shown == [1, 2, 0, 1]


def test_other_events_are_only_passed_on(gauge: type[Gauge]) -> None:
    memory = Memory()
    recorder = MeteredRecorder(memory, "mill", World())
    recorder.record(EventKind.evaluated, step=4, loss=2.0, bits_per_byte=None, samples=8)
    recorder.record(EventKind.finished, step=10, loss=2.0, seconds=1.0)
    assert gauge.shown == {"tidemill_workers": 1, "tidemill_checkpoint_failures": 0}
    assert [kind for kind, _ in memory.heard] == [EventKind.evaluated, EventKind.finished]
