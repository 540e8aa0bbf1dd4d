"""The checkpoints door answers on standard output, and its exit code says how it went."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.commits import commit, cut
from tidemill.compose import run_door
from tidemill.spec.doors import CheckpointsSpec

Ended = tuple[int, str, str]


@pytest.fixture
def open_door(
    load_door: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., Ended]:
    """Open the door in this process as a shell would; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def open_it(*typed: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["jobs/checkpoints.py", *typed])
        with pytest.raises(SystemExit) as left:
            run_door(
                load_door("checkpoints").main,
                config_name="checkpoints",
                schema=CheckpointsSpec,
                verbs="action",
            )
        told = capsys.readouterr()
        return left.value.code, told.out, told.err  # pyright: ignore[reportReturnType]

    return open_it


def test_a_life_at_the_door(open_door: Callable[..., Ended], tmp_path: Path) -> None:
    for step in (10, 20, 30):
        last = commit(tmp_path / "runs" / "mill", step)

    code, out, err = open_door("list", "run=mill")
    assert (code, err) == (0, "")
    assert "3 checkpoints" in out
    assert out.count("whole") == 3

    code, out, _ = open_door("list", "run=mill", "format=json")
    assert (code, [row["step"] for row in json.loads(out)["checkpoints"]]) == (0, [30, 20, 10])

    code, out, _ = open_door("show", "run=mill", "step=20")
    assert (code, "step 20, 160 samples" in out) == (0, True)

    code, out, err = open_door("diff", "run=mill", "step=10", "with_step=20")
    assert (code, "not equal: 11 of 12 tensors differ" in out, err) == (1, True, "")

    code, out, err = open_door("verify", "run=mill")
    assert (code, err) == (0, "")
    assert "3 checkpoints" in out.splitlines()[-1]
    cut(last)
    code, out, err = open_door("verify", "run=mill")
    assert (code, err) == (1, "")
    assert "step-0000000030-a0001  corrupt  rank-00000.bin has 100 bytes instead of" in out

    code, out, _ = open_door("prune", "run=mill", "keep_last=1")
    assert (code, out.splitlines()[-1].startswith("would remove 1 checkpoint, ")) == (0, True)
    code, out, _ = open_door("prune", "run=mill", "keep_last=1", "apply=true")
    assert (code, out.splitlines()[-1].startswith("removed 1 checkpoint, ")) == (0, True)
    names = sorted(path.name for path in (tmp_path / "runs/mill/checkpoints").iterdir())
    assert names == ["step-0000000020-a0001", "step-0000000030-a0001"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("list", "run=mil"), "run: {runs}/mil is no run; did you mean mill? runs there: mill"),
        (("show", "run=mill", "step=7"), "step: {runs}/mill has no checkpoint of step 7; there a"),
        (("prune", "run=mill"), "keep_last: is not set, and neither is keep_best or keep_every"),
        (("diff", "run=mill"), "with_step: names the same checkpoint as step; name another step"),
        (("lost", "run=mill"), "action: there is no 'lost'; did you mean list? use one of list"),
    ],
)
def test_a_mistake_is_one_line(
    typed: tuple[str, ...], told: str, open_door: Callable[..., Ended], tmp_path: Path
) -> None:
    commit(tmp_path / "runs" / "mill", 10)
    code, out, err = open_door(*typed)
    (line,) = err.splitlines()
    assert line.startswith("error: " + told.format(runs=tmp_path / "runs"))
    assert (code, out) == (2, "")
