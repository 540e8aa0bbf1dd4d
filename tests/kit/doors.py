"""Open the doors in `jobs/` as a person would: in a process and a directory of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tidemill.report.events import joined_steps, read_events
from tidemill.spec.progress import Event, EventKind
from tidemill.storage import Location, locate

ROOT = Path(__file__).parents[2]
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a door said and how it closed."""

    code: int
    out: str
    err: str


def open_door(
    door: str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 180,
) -> Answer:
    """Run `python jobs/DOOR.py ARGUMENTS` to its end."""
    with door_ajar(door, *arguments, cwd=cwd, env=env) as process:
        out, err = process.communicate(timeout=timeout_s)
    return Answer(process.returncode, out, err)


@contextmanager
def door_ajar(
    door: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a door and leave it open; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{door}.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for_step(run: Location, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has recorded step number `step`, as long as `process` lives."""
    _wait(lambda e: e.kind is EventKind.step and e.fields["step"] >= step, run, process)


def wait_for_attempt(run: Location, attempt: int, process: subprocess.Popen[str]) -> None:
    """Wait until `attempt` has recorded a step, as long as `process` lives."""
    _wait(lambda e: e.kind is EventKind.step and e.attempt == attempt, run, process)


def _wait(seen: Callable[[Event], bool], run: Location, process: subprocess.Popen[str]) -> None:
    while not any(seen(event) for event in read_events(run)):
        if process.poll() is not None:
            _, err = process.communicate()
            raise AssertionError(f"the run ended too early:\n{err}")
        time.sleep(POLL_S)


def events_of(run: Location, kind: EventKind) -> list[Event]:
    """Events of one kind, over all attempts."""
    return [event for event in read_events(run) if event.kind is kind]


def curve_of(run: Location) -> list[float]:
    """The loss of every step of the run, whoever took it."""
    steps = joined_steps(read_events(run))
    assert [event.fields["step"] for event in steps] == list(range(len(steps)))
    return [event.fields["loss"] for event in steps]


def run_at(cwd: Path, name: str) -> Location:
    """The directory of a run that was started in `cwd`."""
    return locate(str(cwd / "runs" / name))
