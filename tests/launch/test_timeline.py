"""Timeline: stages follow one another, and none of the time between is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.launch import timeline as module
from tidemill.launch.policy import Cause
from tidemill.launch.timeline import Timeline

if TYPE_CHECKING:
    import pytest


def test_stages_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    timeline = Timeline(Cause.kill, 4, detect_s=0.5)
    for stage, after_s in (("stop", 1.0), ("place", 8.0), ("decide", 2.0), ("place", 4.0)):
        now_s += after_s
        timeline.mark(stage)
    timeline.note(world=3, lost=["b"])
    assert timeline.fields() == {
        "cause": "kill",
        "before": 4,
        "detect_s": 0.5,
        "stop_s": 1.0,
        "place_s": 12.0,
        "decide_s": 2.0,
        "world": 3,
        "lost": ["b"],
    }
    assert timeline.seconds == 15.0
