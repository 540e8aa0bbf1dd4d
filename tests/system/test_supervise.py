"""A run whose driver is killed goes on by itself, and ends as if nothing had happened."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.kit.doors import curve_of, door_ajar, events_of, run_at, wait_for_step
from tests.system import test_ray_job
from tidemill.spec.progress import EventKind
from tidemill.storage import Location, locate

STEPS = 300
KILLED_AFTER = 60
EVERY = 20
PATIENCE_S = 240.0
TYPED = (
    *("experiment=parity", "name=mill", "strategy=ddp", "scale.workers=1", f"steps={STEPS}"),
    *("optim.decay_steps=300", f"checkpoint.every_steps={EVERY}", "first_pause_s=0.1"),
)
cluster = test_ray_job.cluster


def said_by(out: str) -> list[str]:
    """What the supervisor itself said."""
    return [line for line in out.splitlines() if line.startswith("supervisor: ")]


def assert_whole(run: Location) -> None:
    """The run was interrupted once, and lacks nothing."""
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["step"] >= KILLED_AFTER // EVERY * EVERY
    assert len(curve_of(run)) == STEPS


def test_a_killed_driver_is_replaced(tmp_path: Path) -> None:
    run = run_at(tmp_path, "mill")
    with door_ajar("supervise", *TYPED, "tries=2", cwd=tmp_path) as supervisor:
        wait_for_step(run, KILLED_AFTER, supervisor)
        (driver,) = psutil.Process(supervisor.pid).children()
        family = driver.children(recursive=True)
        driver.kill()
        out, err = supervisor.communicate(timeout=PATIENCE_S)
    assert supervisor.returncode == 0, err
    first, killed, second, finished = said_by(out)
    assert first == f"supervisor: driver 1 is process {driver.pid}"
    assert killed.startswith("supervisor: driver 1 was ended by SIGKILL at step ")
    assert killed.endswith("; the next one starts in 0.1 s")
    assert second.startswith("supervisor: driver 2 is process ")
    assert finished == f"supervisor: driver 2 finished at step {STEPS}"
    assert_whole(run)
    # Nothing is left of the first driver's Ray.
    assert [process for process in family if process.is_running()] == []


@pytest.mark.slow
def test_a_killed_job_is_submitted_again(cluster: str, tmp_path: Path) -> None:
    test_ray_job._client(cluster)  # once it answers
    run = locate(str(tmp_path)) / "mill"
    typed = (f"submit_to={cluster}", f"python={sys.executable}", f"storage={tmp_path}")
    with door_ajar("supervise", *TYPED, *typed, cwd=tmp_path) as supervisor:
        wait_for_step(run, KILLED_AFTER, supervisor)
        (driver,) = _drivers(tmp_path)
        driver.send_signal(signal.SIGKILL)
        out, err = supervisor.communicate(timeout=PATIENCE_S)
    assert supervisor.returncode == 0, err
    first, killed, second, finished = said_by(out)
    assert first.startswith("supervisor: driver 1 is job raysubmit_")
    assert killed.startswith("supervisor: driver 1 ")
    assert second.startswith("supervisor: driver 2 is job raysubmit_")
    assert second != first
    assert finished == f"supervisor: driver 2 finished at step {STEPS}"
    assert out.count(f"resuming {run} at step ") == 1
    assert_whole(run)


def _drivers(storage: Path) -> list[psutil.Process]:
    """Processes that run the train door, but for the shells around them."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"] or [])[1:2] == ["jobs/train.py"]
        and f"storage={storage}" in words
    ]
