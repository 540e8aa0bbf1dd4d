"""Workers that stand still, machines that vanish without a word, and runs that share a cluster."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from tests.kit.cluster import Nodes, local_cluster
from tests.kit.doors import curve_of, events_of, open_door, run_at
from tests.kit.slow_run import environment, make_place, open_run, undisturbed
from tests.kit.world import run_world
from tidemill.report.events import read_events
from tidemill.spec.progress import EventKind
from tidemill.storage import Location

pytestmark = pytest.mark.slow
STEPS = 3000
"""So many that growing always pays; the run is stopped long before."""
PATIENCE_S = 120.0
TOLERANCE = 2e-6
"""Of fp32 losses at any world, see `tests/train/strategy/test_parity.py`."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and a corpus."""
    return make_place(tmp_path_factory.mktemp("trouble"))


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Nodes]:
    """Three nodes."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(place, pause_s=0.1).items():
            patch.setenv(key, value)
        with local_cluster(3, head_cpus=0) as nodes:
            yield nodes


class Run:
    """A run on a cluster."""

    def __init__(self, run: Location, driver: subprocess.Popen[str]) -> None:
        self.at = run
        self.driver = driver

    def wait(self, what: str, seen: Callable[[], bool]) -> None:
        """Until `seen`, as long as the run goes on."""
        until_s = time.monotonic() + PATIENCE_S
        while not seen():
            if self.driver.poll() is not None:
                raise AssertionError((what, self.driver.communicate()))
            assert time.monotonic() < until_s, f"waited in vain for {what}"
            time.sleep(0.05)

    def train_at(self, size: int) -> int:
        """Until a group of `size` is the newest and has taken ten steps; its attempt."""
        taken: list[int] = []

        def seen() -> bool:
            events = read_events(self.at)
            started = [event for event in events if event.kind is EventKind.attempt_started]
            if not started or started[-1].fields["world"] != size:
                return False
            newest = started[-1].attempt
            steps = [event for event in events if event.kind is EventKind.step]
            taken[:] = [newest]
            return sum(event.attempt == newest for event in steps) >= 10

        self.wait(f"{size} workers", seen)
        return taken[0]

    def stop(self) -> None:
        """Ask it to, and check that its curve is that of a run that nobody disturbed."""
        self.driver.send_signal(signal.SIGTERM)
        _, err = self.driver.communicate(timeout=PATIENCE_S)
        assert self.driver.returncode == 128 + signal.SIGTERM, err
        curve = curve_of(self.at)
        cwd = Path(self.at.path).parents[1]
        (plain,) = run_world(
            undisturbed, 1, str(cwd), self.at, len(curve), env={"STEP_PAUSE_S": "0"}
        )
        assert curve == pytest.approx(plain, abs=TOLERANCE)
        audit = open_door("audit", f"run={self.at.name}", cwd=cwd)
        assert audit.code == 0, audit.out + audit.err


@contextlib.contextmanager
def started(place: Path, cluster: Nodes, name: str, workers: int, *overrides: str) -> Iterator[Run]:
    """An elastic run of up to so many workers."""
    with open_run(
        place,
        cluster,
        name,
        STEPS,
        "batch.global_size=12",
        "batch.micro_size=3",
        f"scale.workers={workers}",
        "scale.min_workers=1",
        *overrides,
    ) as driver:
        yield Run(run_at(place, name), driver)


def processes(cluster: Nodes, node: str, title: str) -> list[psutil.Process]:
    """A node's processes whose title contains a word."""
    found: list[psutil.Process] = []
    for process in cluster.workers_of(node):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_worker_that_stands_still_is_replaced(place: Path, cluster: Nodes) -> None:
    with started(place, cluster, "hung", 3) as run:
        first = run.train_at(3)
        (worker,) = processes(cluster, cluster.ids[-1], "KeptWorker")
        worker.suspend()
        run.wait("another group", lambda: run.train_at(2) > first)
        run.train_at(3)
        assert not worker.is_running(), "it was ended, so that it cannot come back"
        run.stop()
    (change, *_) = events_of(run.at, EventKind.rejoined)
    assert change.fields["cause"] in ("kill", "hang")
    assert change.fields["redone"] == 0


def test_a_machine_that_vanishes_without_a_word_is_left_out(place: Path, cluster: Nodes) -> None:
    node = cluster.add()
    with started(place, cluster, "vanished", 4) as run:
        run.train_at(4)
        frozen = [cluster.raylet_of(node), *cluster.workers_of(node)]
        for process in frozen:
            process.suspend()  # its connections stay open, and nobody answers
        try:
            run.train_at(3)
            run.stop()
        finally:
            for process in frozen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            cluster.lose(node)
    (change, *_) = events_of(run.at, EventKind.rejoined)
    assert (change.fields["cause"], change.fields["redone"]) == ("kill", 0)


def test_runs_share_a_cluster_by_their_weights(place: Path, cluster: Nodes) -> None:
    with started(place, cluster, "first", 3, "scale.weight=2") as first:
        first.train_at(3)
        with started(place, cluster, "second", 3) as second:
            second.train_at(1)
            first.train_at(2)
            second.stop()
        first.train_at(3)
        first.stop()
    causes = [event.fields["cause"] for event in events_of(first.at, EventKind.rejoined)]
    assert causes == ["share", "grow"]


@pytest.mark.timeout(1800)
def test_a_hundred_groups_leave_nothing_behind(place: Path, cluster: Nodes) -> None:
    with started(place, cluster, "many", 2, "scale.max_failures=-1") as run:
        run.train_at(2)
        before: dict[str, float] = {}
        while len(events_of(run.at, EventKind.rejoined)) < 100:
            if not before and len(events_of(run.at, EventKind.rejoined)) >= 20:
                before = _left(cluster, run.at)
            victims = [
                process
                for node in cluster.ids
                for process in processes(cluster, node, "KeptWorker")
            ]
            min(victims, key=lambda process: -process.create_time()).kill()
            run.train_at(1)
            run.train_at(2)
        after = _left(cluster, run.at)
        run.stop()
    assert after["placement groups"] == 0
    margins = {"processes": 2, "files": 10, "memory": 20, "disk": 1, "objects": 0.01}
    for name, margin in margins.items():
        assert after[name] <= before[name] + margin, (name, before, after)


def _left(cluster: Nodes, run: Location) -> dict[str, float]:
    """What there is on the nodes, of the worker that has lived longest, and of the run; MiB."""
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        groups = [
            group
            for group in ray.util.placement_group_table().values()
            if group["state"] != "REMOVED"
        ]
        store = "object_store_memory"
        objects = ray.cluster_resources()[store] - ray.available_resources()[store]
    finally:
        ray.shutdown()
    files = [file for file in Path(run.path).rglob("*") if file.suffix != ".jsonl"]
    family = [process for node in cluster.ids for process in cluster.workers_of(node)]
    workers = [
        process for node in cluster.ids for process in processes(cluster, node, "KeptWorker")
    ]
    oldest = min(workers, key=psutil.Process.create_time)
    return {
        "processes": len(family),
        "files": oldest.num_fds(),
        "memory": oldest.memory_info().rss / 2**20,
        "disk": sum(file.stat().st_size for file in files if file.is_file()) / 2**20,
        "placement groups": len(groups),
        "objects": objects / 2**20,
    }
