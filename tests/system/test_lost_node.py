"""All processes of a run are lost between two uploads: it goes on from the memory of nodes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kit.cluster import Nodes, local_cluster
from tests.kit.doors import curve_of, events_of, run_at
from tests.kit.slow_run import environment, make_place, open_run, undisturbed
from tests.kit.world import run_world
from tidemill.checkpoint.manifest import committed
from tidemill.spec.progress import EventKind
from tidemill.storage import Location

STEPS = 150
EVERY = 5
KILLED_AFTER = 20
PATIENCE_S = 120.0  # each, for the snapshot and for the end


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and a corpus."""
    return make_place(tmp_path_factory.mktemp("lost-node"))


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Nodes]:
    """Three nodes for two workers; a lost one is noticed within seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(place, pause_s=0.1).items():
            patch.setenv(key, value)
        with local_cluster(2, head_cpus=1) as nodes:
            yield nodes


def _called(cluster: Nodes, node: str, title: str) -> list[psutil.Process]:
    """The node's processes whose title contains a word."""
    found: list[psutil.Process] = []
    for process in cluster.workers_of(node):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _opened(
    place: Path, cluster: Nodes, name: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A run on two workers, with snapshots in near memory."""
    near = ("checkpoint.near_gib=1", f"checkpoint.near_every_steps={EVERY}")
    return open_run(place, cluster, name, STEPS, *near)


def _wait_for_copies(driver: subprocess.Popen[str], run: Location) -> int:
    """Wait until a snapshot is near that is of step `KILLED_AFTER` at least; its step."""
    until_s = time.monotonic() + PATIENCE_S
    newest = 0
    while newest < KILLED_AFTER:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until_s
        time.sleep(0.05)
        kept = [event.fields["step"] for event in events_of(run, EventKind.near_kept)]
        newest = max(kept, default=0)
    assert not committed(run)
    return newest


def _check_end(place: Path, cluster: Nodes, run: Location, newest: int) -> None:
    """The run went on from a near copy of step `newest` or later, and nothing else shows."""
    (restored,) = events_of(run, EventKind.restored)
    assert restored.fields["source"] == "near"
    assert restored.fields["step"] >= newest
    taken = [event for event in events_of(run, EventKind.step) if event.attempt == 1]
    assert restored.fields["step"] <= len(taken) < restored.fields["step"] + 4 * EVERY
    assert not [node for node in cluster.ids if _called(cluster, node, "Vault")]
    plain, _ = run_world(undisturbed, 2, str(place), run, STEPS, env={"STEP_PAUSE_S": "0"})
    assert curve_of(run) == pytest.approx(plain, abs=1e-6)


@pytest.mark.slow
def test_workers_that_are_all_lost_cost_the_steps_since_the_snapshot(
    place: Path, cluster: Nodes
) -> None:
    run = run_at(place, "lost")
    with _opened(place, cluster, "lost") as driver:
        newest = _wait_for_copies(driver, run)
        assert sum(bool(_called(cluster, node, "Vault")) for node in cluster.ids) == 2
        workers = [one for node in cluster.ids for one in _called(cluster, node, "KeptWorker")]
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, err
    _check_end(place, cluster, run, newest)


@pytest.mark.slow
def test_a_driver_that_was_killed_is_followed_by_another(place: Path, cluster: Nodes) -> None:
    run = run_at(place, "orphaned")
    with _opened(place, cluster, "orphaned") as driver:
        newest = _wait_for_copies(driver, run)
        driver.kill()
    with _opened(place, cluster, "orphaned") as driver:
        _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, err
    _check_end(place, cluster, run, newest)
