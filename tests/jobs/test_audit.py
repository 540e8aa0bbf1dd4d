"""The audit's door: the answer on standard output, and whether all is well as exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launch.test_audit import record
from tidemill.compose import run_door
from tidemill.spec.doors import AuditSpec


def test_a_life_at_the_door(
    load_door: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    record(tmp_path)
    monkeypatch.chdir(tmp_path)

    def open_door(*typed: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["jobs/audit.py", *typed])
        with pytest.raises(SystemExit) as left:
            run_door(load_door("audit").main, config_name="audit", schema=AuditSpec)
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    code, out, err = open_door("run=mill")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("clean: every sample of ")

    code, out, err = open_door("run=mill", "format=json")
    assert (code, err, json.loads(out)["clean"]) == (0, "", True)

    log = tmp_path / "runs/mill/events/attempt-0002.jsonl"
    log.write_text(log.read_text().replace('"step":9,', '"step":10,'))
    code, out, err = open_door("run=mill")
    assert (code, err) == (1, "")
    assert "step 9: in no log" in out.splitlines()
    assert out.splitlines()[-1] == "not clean: step 9: in no log"

    code, out, err = open_door("run=mil")
    assert (code, out) == (2, "")
    assert err.startswith("error: run: ")
    assert "did you mean mill?" in err
