"""Nodes of this machine and a driver on them, for a benchmark to disturb."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kit.cluster import Nodes, local_cluster

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0
QUICKLY_DEAD = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
COMMON = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}

Steps = Callable[[], list[tuple[float, int, int]]]
"""(seconds since the epoch, attempt or 0, workers) of every committed step."""


@contextlib.contextmanager
def make_place() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="arena-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def make_cluster(nodes: int, environment: dict[str, str]) -> Iterator[Nodes]:
    """A head without workers and so many nodes, in an environment."""
    wanted = COMMON | environment
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with local_cluster(nodes, head_cpus=0) as cluster:
            yield cluster
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def start_driver(
    command: list[str], place: Path, cluster: Nodes
) -> Iterator[subprocess.Popen[bytes]]:
    """A driver on a cluster, killed at the end if it is not over; its errors go to a file."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=place,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.DEVNULL,
        stderr=(place / "stderr.txt").open("wb"),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
