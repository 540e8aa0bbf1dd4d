"""The supervise door hands the run's keys to the train door, and its end to the shell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tidemill.compose import run_door
from tidemill.spec.run import RunSpec
from tidemill.spec.supervise import SuperviseSpec

TYPED = ("tries=2", "experiment=parity", "name=mill", "first_pause_s=0.5")


class Stage:
    """Stands in for the supervisor."""

    def __init__(self) -> None:
        self.code = 0
        self.asked: list[tuple[SuperviseSpec, RunSpec, Path, list[str]]] = []

    def supervise(
        self,
        spec: SuperviseSpec,
        run: RunSpec,
        door: Path,
        typed: Sequence[str],
        say: Callable[[str], None],
    ) -> int:
        self.asked.append((spec, run, door, list(typed)))
        say("driver 1 is process 7")
        return self.code


@pytest.fixture
def stage(stand_in: Callable[..., None]) -> Stage:
    stage = Stage()
    stand_in("tidemill.launch.supervisor", supervise=stage.supervise)
    return stage


@pytest.fixture
def open_door(
    load_door: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Open the door in this process; gives the exit code."""

    def open_it(*typed: str) -> int:
        monkeypatch.setattr(sys, "argv", ["jobs/supervise.py", *typed])
        door = load_door("supervise")
        monkeypatch.setattr(sys, "argv", ["jobs/supervise.py", *door.OWN])
        with pytest.raises(SystemExit) as left:
            run_door(door.main, config_name="supervise", schema=SuperviseSpec)
        return left.value.code  # pyright: ignore[reportReturnType]

    return open_it


@pytest.mark.parametrize("code", [0, 3, 143])
def test_each_gets_its_keys_and_the_shell_the_end(
    code: int, stage: Stage, open_door: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stage.code = code
    assert open_door(*TYPED) == code
    ((spec, run, door, typed),) = stage.asked
    assert spec == SuperviseSpec(tries=2, first_pause_s=0.5)
    assert (run.name, run.steps) == ("mill", 2)
    assert typed == ["experiment=parity", "name=mill"]
    assert door == Path(__file__).parents[2] / "jobs" / "train.py"
    assert capsys.readouterr().out == "supervisor: driver 1 is process 7\n"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("tries=0", "error: tries: 0 is too small"),
        ("stepz=3", "error: stepz: there is no such key; did you mean steps?"),
        ("optim.lr=high", "error: optim.lr: "),
    ],
)
def test_a_mistake_starts_no_driver(
    wrong: str,
    told: str,
    stage: Stage,
    open_door: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert open_door(*TYPED, wrong) == 2
    assert stage.asked == []
    assert capsys.readouterr().err.startswith(told)
