"""The replay door simulates what is asked for, and composes the run that it is about."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.compose import run_door
from tidemill.spec.replay import ReplaySpec

Ended = tuple[int | None, str, str]


@pytest.fixture
def open_door(
    load_door: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., Ended]:
    """Open the door in this process as a shell would; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def open_it(*typed: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["jobs/replay.py", *typed])
        with pytest.raises(SystemExit) as left:
            run_door(load_door("replay").main, config_name="replay", schema=ReplaySpec)
        told = capsys.readouterr()
        return left.value.code, told.out, told.err  # pyright: ignore[reportReturnType]

    return open_it


def test_a_replay_takes_one_line(open_door: Callable[..., Ended], tmp_path: Path) -> None:
    code, out, err = open_door("duration_s=3600", "train=strategy=fsdp2 batch.global_size=48")
    assert (code, err) == (0, "")
    first, *table, last = out.splitlines()
    assert first == "p3: 4.95 machines for 3600 s"
    assert "| **useful** |" in table[2]
    assert last == f"page: {tmp_path}/replays/replay/replay.md"


def test_several_replays_are_a_multirun(open_door: Callable[..., Ended]) -> None:
    code, out, err = open_door("-m", "trace=poisson", "duration_s=600", "seed=1,2")
    assert (code, out.count("**useful**")) == (0, 2), err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("train=batch.global_sise=4", "error: batch.global_sise: "),
        ("trace=poisson", "error: duration_s: is 0, and what is drawn at random has no end"),
        ("nodes=none", "error: nodes: "),
    ],
)
def test_a_mistake_is_one_line(typed: str, told: str, open_door: Callable[..., Ended]) -> None:
    code, out, err = open_door(typed)
    assert (code, out) == (2, "")
    assert err.startswith(told)
    assert len(err.splitlines()) == 1
