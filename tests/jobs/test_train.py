"""The train door says its plan before it starts anything, and what came of it afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from tests.spec.test_run import RUN
from tidemill.errors import DataError, TrainingError
from tidemill.spec.run import RunSpec


class Start(StrEnum):
    fresh = "fresh"
    finished = "finished"


@dataclass
class Corpus:
    vocab: int = 257
    train_tokens: int = 1280


@dataclass
class Ready:
    spec: RunSpec
    run: str
    start: Start
    corpus: Corpus
    message: str = "ready"


@dataclass
class Outcome:
    message: str = "finished 10 steps"
    exit_code: int = 0


class Stage:
    """Stands in for everything the door calls, and notes the order."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.start = Start.fresh
        self.ending: Outcome | Exception = Outcome()
        self.done: list[str] = []
        self.said_before_training = ""

    def preflight(self, spec: RunSpec) -> Ready:
        self.done.append("preflight")
        resolved = replace(spec, storage="/resolved")
        return Ready(resolved, f"/resolved/{spec.name}", self.start, Corpus())

    def train(self, ready: Ready, say: Callable[[str], None]) -> Outcome:
        assert ready.spec.storage == "/resolved"
        self.done.append("train")
        self.said_before_training = self.capsys.readouterr().out
        say("step 1")
        if isinstance(self.ending, Exception):
            raise self.ending
        return self.ending

    def write_summary(self, run: str) -> None:
        assert run == "/resolved/a"
        self.done.append("summary")


@pytest.fixture
def stage(stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Stage:
    stage = Stage(capsys)
    stand_in("tidemill.launch.preflight", preflight=stage.preflight, Start=Start)
    stand_in("tidemill.launch.trainer", train=stage.train)
    stand_in("tidemill.report.summary", write_summary=stage.write_summary)
    return stage


def test_a_run_is_planned_trained_and_told(
    stage: Stage, load_door: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    load_door("train").main(RUN)
    assert stage.done == ["preflight", "train", "summary"]
    first, *rest = stage.said_before_training.splitlines()
    assert first == "run a: 10 steps, 2 CPU workers, ddp, fp32"
    assert rest[-2:] == [
        "checkpoints: every 100 steps, at the end, newest 2 kept in /resolved/a",
        "ready",
    ]
    assert capsys.readouterr().out.splitlines() == [
        "step 1",
        "finished 10 steps",
        "summary: /resolved/a/summary.md",
        "curve: /resolved/a/loss.svg",
    ]


def test_a_finished_run_starts_nothing(
    stage: Stage, load_door: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stage.start = Start.finished
    load_door("train").main(RUN)
    assert stage.done == ["preflight"]
    assert capsys.readouterr().out.splitlines()[-1] == "ready"


def test_a_stopped_run_has_the_code_of_its_signal(
    stage: Stage, load_door: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stage.ending = Outcome(message="stopped at step 3", exit_code=143)
    with pytest.raises(SystemExit) as left:
        load_door("train").main(RUN)
    assert left.value.code == 143
    assert stage.done == ["preflight", "train", "summary"]
    assert "stopped at step 3" in capsys.readouterr().out.splitlines()


def test_a_stop_ends_a_multirun(
    stage: Stage,
    load_door: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from tidemill.compose import run_door

    stage.ending = Outcome(exit_code=130)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "-m", "seed=1,2"])
    monkeypatch.setattr(sys.modules["tidemill.report.summary"], "write_summary", lambda _: None)
    with pytest.raises(SystemExit) as left:
        run_door(load_door("train").main, config_name="config", schema=RunSpec)
    assert left.value.code == 130
    assert stage.done == ["preflight", "train"]


def test_a_failed_run_is_told_and_still_fails(
    stage: Stage, load_door: Callable[[str], Any]
) -> None:
    stage.ending = TrainingError("rank 1: boom")
    with pytest.raises(TrainingError, match="boom"):
        load_door("train").main(RUN)
    assert stage.done == ["preflight", "train", "summary"]


def test_what_never_started_leaves_no_summary(
    stage: Stage, load_door: Callable[[str], Any]
) -> None:
    stage.ending = DataError("data.paths: gone")
    with pytest.raises(DataError):
        load_door("train").main(RUN)
    assert stage.done == ["preflight", "train"]
