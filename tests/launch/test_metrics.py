"""Gauges show the last step of a run by name; the event log gets everything regardless."""

from __future__ import annotations

import math

import pytest

from tests.kit.training import Memory
from tidemill.launch import metrics
from tidemill.launch.metrics import MeteredRecorder
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
    assert gauge.shown == {"tidemill_workers": 3}
    recorder.record(EventKind.step, **STEP)
    assert gauge.shown == {
        "tidemill_workers": 3,
        "tidemill_loss": 2.5,
        "tidemill_lr": 1e-3,
        "tidemill_grad_norm": math.inf,
        "tidemill_step": 5,
        "tidemill_tokens_per_second": 600.0,
    }
    assert gauge.tags == {name: {"run": "mill"} for name in gauge.shown}
    assert memory.heard == [(EventKind.step, STEP)]


def test_other_events_are_only_passed_on(gauge: type[Gauge]) -> None:
    memory = Memory()
    recorder = MeteredRecorder(memory, "mill", World())
    recorder.record(EventKind.evaluated, step=4, loss=2.0, bits_per_byte=None, samples=8)
    recorder.record(EventKind.finished, step=10, loss=2.0, seconds=1.0)
    assert gauge.shown == {"tidemill_workers": 1}
    assert [kind for kind, _ in memory.heard] == [EventKind.evaluated, EventKind.finished]
