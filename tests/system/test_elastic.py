"""One run, many lives: workers come and go by kills, drains and joins, and nothing shows."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.cluster import Nodes, local_cluster
from tests.kit.doors import curve_of, events_of, open_door, run_at
from tests.kit.slow_run import environment, make_place, open_run, undisturbed
from tests.kit.world import run_world
from tidemill.report.events import read_events
from tidemill.spec.progress import EventKind
from tidemill.storage import Location

STEPS = 3000
"""So many that growing always pays; the run is stopped long before."""
PATIENCE_S = 120.0
TOLERANCE = 2e-6
"""Of fp32 losses at any strategy and world, see `tests/train/strategy/test_parity.py`."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and a corpus."""
    return make_place(tmp_path_factory.mktemp("elastic"))


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Nodes]:
    """A head without workers, and nodes that each test brings."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(place, pause_s=0.1).items():
            patch.setenv(key, value)
        with local_cluster(0, head_cpus=0) as nodes:
            yield nodes


class Story:
    """A run on nodes that the test adds and takes away."""

    def __init__(self, cluster: Nodes, run: Location, driver: subprocess.Popen[str]) -> None:
        self.cluster = cluster
        self.run = run
        self.driver = driver

    def wait(self, what: str, seen: Callable[[], bool]) -> None:
        """Until `seen`, as long as the run goes on."""
        until_s = time.monotonic() + PATIENCE_S
        while not seen():
            if self.driver.poll() is not None:
                raise AssertionError((what, self.driver.communicate()))
            assert time.monotonic() < until_s, f"waited in vain for {what}"
            time.sleep(0.05)

    def worlds(self) -> list[int]:
        """Sizes of the groups that took a step, in order."""
        events = read_events(self.run)
        sizes = {
            event.attempt: event.fields["world"]
            for event in events
            if event.kind is EventKind.attempt_started
        }
        trained = {event.attempt for event in events if event.kind is EventKind.step}
        return [size for attempt, size in sorted(sizes.items()) if attempt in trained]

    def train_at(self, size: int, steps: int = 8) -> None:
        """Until a group of `size` is the newest and has taken some steps."""
        self.wait(f"{size} workers", lambda: self.worlds()[-1:] == [size])
        first = self._steps()
        self.wait(f"{steps} steps", lambda: self._steps() >= first + steps)

    def _steps(self) -> int:
        return len(events_of(self.run, EventKind.step))


@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", "deepspeed_z1", "deepspeed_z2", "deepspeed_z3"]
)
def test_kills_drains_and_joins_leave_the_curve_as_it_was(
    strategy: str, place: Path, cluster: Nodes
) -> None:
    nodes = [cluster.add(), cluster.add()]
    run = run_at(place, strategy)
    with open_run(
        place,
        cluster,
        strategy,
        STEPS,
        f"strategy={strategy}",
        "batch.global_size=12",
        "batch.micro_size=3",
        "scale.workers=4",
        "scale.min_workers=1",
    ) as driver:
        story = Story(cluster, run, driver)
        story.train_at(2)
        nodes += [cluster.add(), cluster.add()]
        story.train_at(4)
        cluster.lose(nodes.pop())
        story.train_at(3)
        for node in nodes[1:]:
            cluster.drain(node, deadline_s=60)
        story.train_at(1, steps=3)
        for node in nodes[1:]:
            cluster.lose(node)
        nodes = [nodes[0], *(cluster.add() for _ in range(3))]
        story.train_at(4)
        driver.send_signal(signal.SIGTERM)
        _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 128 + signal.SIGTERM, err
    for node in nodes:
        cluster.lose(node)
    sources = {event.fields["source"] for event in events_of(run, EventKind.restored)}
    assert sources == {"memory"}
    for change in events_of(run, EventKind.rejoined):
        assert change.fields["redone"] == 0 or change.fields["cause"] == "kill"
    curve = curve_of(run)
    assert len(curve) >= 60
    (plain,) = run_world(undisturbed, 1, str(place), run, len(curve), env={"STEP_PAUSE_S": "0"})
    assert curve == pytest.approx(plain, abs=TOLERANCE)
    audit = open_door("audit", f"run={strategy}", cwd=place)
    assert audit.code == 0, audit.out + audit.err
