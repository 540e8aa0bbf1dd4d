"""A driver is a process that its supervisor can stop, and that does not outlive it unasked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.kit.doors import ROOT
from tidemill.launch.drivers import Ending, Life, LocalDrivers, describe
from tidemill.launch.lock import sole_driver, this_driver
from tidemill.storage import Location, locate

PATIENCE_S = 60.0
POLITE = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])

def leave(number, frame):
    (place / "asked").write_text(str(number))
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, leave)
(place / "ready").touch()
time.sleep(100)
"""
WITH_CHILDREN = """
import os, pathlib, signal, subprocess, sys
child = [sys.executable, "-c", "import time; time.sleep(100)"]
alike = subprocess.Popen(child)
apart = subprocess.Popen(child, process_group=0)
pathlib.Path(sys.argv[1], "children").write_text(f"{alike.pid} {apart.pid}")
os.kill(os.getpid(), signal.SIGKILL)
"""
SUPERVISOR = """
import sys, time
from tidemill.launch.drivers import LocalDrivers
from tidemill.storage import locate

life = LocalDrivers(sys.argv[2:], locate(sys.argv[1])).start()
print(life.name, flush=True)
time.sleep(100)
"""


@pytest.fixture
def run(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "mill"))


def wait_until(done: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def start(script: str, run: Location, place: Path) -> Life:
    return LocalDrivers([sys.executable, "-c", script, str(place)], run).start()


def end_of(life: Life) -> Ending:
    until_s = time.monotonic() + PATIENCE_S
    while (ending := life.ended()) is None:
        assert time.monotonic() < until_s
    return ending


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "finished"),
        (1, "failed with exit code 1"),
        (3, "failed with exit code 3"),
        (143, "stopped for SIGTERM"),
        (-9, "was ended by SIGKILL"),
    ],
)
def test_an_exit_code_says_how_it_ended(code: int, told: str) -> None:
    assert describe(code) == told


def test_the_end_of_a_driver_is_seen(run: Location, tmp_path: Path) -> None:
    life = start("import sys; sys.exit(3)", run, tmp_path)
    assert end_of(life) == Ending(3, "failed with exit code 3")


def test_a_driver_takes_the_signals_that_are_passed_on_and_no_others(
    run: Location, tmp_path: Path
) -> None:
    life = start(POLITE, run, tmp_path)
    wait_until((tmp_path / "ready").exists)
    assert life.ended() is None
    # What a terminal sends goes to the group of its supervisor.
    assert os.getpgid(int(life.name.removeprefix("process "))) != os.getpgid(0)
    life.send(signal.SIGINT)
    assert end_of(life) == Ending(130, "stopped for SIGINT")
    assert (tmp_path / "asked").read_text() == str(int(signal.SIGINT))


def test_what_a_dead_driver_leaves_is_ended(run: Location, tmp_path: Path) -> None:
    life = start(WITH_CHILDREN, run, tmp_path)
    assert end_of(life) == Ending(-9, "was ended by SIGKILL")
    for pid in (tmp_path / "children").read_text().split():
        process = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None
        assert process is None or process.status() == psutil.STATUS_ZOMBIE


def test_a_driver_that_loses_its_supervisor_is_asked_to_stop(run: Location, tmp_path: Path) -> None:
    command = [sys.executable, "-c", POLITE, str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, run.path, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
        text=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        driver = psutil.Process(int(supervisor.stdout.readline().removeprefix("process ")))
        wait_until((tmp_path / "ready").exists)
        supervisor.kill()
        supervisor.wait()
        wait_until((tmp_path / "asked").exists)
    assert (tmp_path / "asked").read_text() == str(int(signal.SIGTERM))
    psutil.wait_procs([driver], timeout=PATIENCE_S)


def test_somebody_elses_driver_is_seen(run: Location) -> None:
    drivers = LocalDrivers(["true"], run)
    assert drivers.busy() is None
    with sole_driver(run):
        assert drivers.busy() == str(this_driver())
    assert drivers.busy() is None
