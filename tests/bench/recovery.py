"""Seconds from a node's SIGKILL to the next committed step, over Ray Train's own elasticity.

Every arm trains on three nodes of one machine, loses one to SIGKILL, goes on with two, and gets a
third again. A step is committed when all ranks of the new group have taken it. The arms are

    ours       `jobs/train.py`, which saves nothing to storage before its end
    tuned      Ray Train with the best settings known for it, see `TUNED` and `ray_elastic._tune`
    shipped    Ray Train as it is installed

`ours` also has nodes drained: steps lost, and seconds that training stood still.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.bench.contract import parse_rounds, tell
from tests.kit.cluster import Nodes, local_cluster
from tidemill.report.events import read_events
from tidemill.spec.progress import EventKind
from tidemill.storage import locate

WORKERS = 3
SAMPLES = 12
PAUSE_S = 0.15
MODEL = {"layers": 4, "width": 128, "heads": 4}
PATIENCE_S = 240.0
SETTLE_S = 4.0
QUICKLY_DEAD = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
TUNED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "4",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
COMMON = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "STEP_PAUSE_S": str(PAUSE_S),
}
FACTORY = """
import os, time
from dataclasses import replace
from tests.kit.training import tiny_run
from tidemill.train.model import build_model

def make(vocab, sequence):
    spec = replace(tiny_run().model, layers=4, width=128, heads=4)
    model = build_model(spec, vocab=vocab, sequence=sequence, seed=1)
    model.register_forward_pre_hook(lambda *_: time.sleep(float(os.environ["STEP_PAUSE_S"])))
    return model
"""

Steps = Callable[[], list[tuple[float, int, int]]]
"""(seconds since the epoch, attempt or 0, workers) of every committed step."""


class Arm:
    """A run on a cluster that can be disturbed.

    Args:
        cluster: Three nodes.
        steps: Reads what it has committed.
        process: Its driver.
    """

    def __init__(self, cluster: Nodes, steps: Steps, process: subprocess.Popen[bytes]) -> None:
        self.cluster = cluster
        self._steps = steps
        self._process = process
        self.spare = cluster.ids[1:]

    def wait(self, workers: int, after_s: float) -> float:
        """When the first step after a moment was committed by so many workers."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            for at_s, _, size in self._steps():
                if at_s > after_s and size == workers:
                    return at_s
            if self._process.poll() is not None:
                raise RuntimeError("the driver ended")
            time.sleep(0.05)
        raise TimeoutError(f"no step of {workers} workers")

    def kill(self) -> float:
        """Seconds from a node's SIGKILL to the next committed step; brings a node back after."""
        began_s = time.time()
        self.cluster.lose(self.spare.pop())
        seconds = self.wait(WORKERS - 1, began_s) - began_s
        self.rejoin()
        return seconds

    def drain(self) -> None:
        """Announce that a node goes, and take it away once the group is smaller."""
        began_s, node = time.time(), self.spare.pop()
        self.cluster.drain(node, deadline_s=30)
        self.wait(WORKERS - 1, began_s)
        self.cluster.lose(node)
        self.rejoin()

    def rejoin(self) -> None:
        """Add a node and wait until the group has grown and trained for a while."""
        began_s = time.time()
        self.spare.append(self.cluster.add())
        at_s = self.wait(WORKERS, began_s)
        self.wait(WORKERS, at_s + SETTLE_S)


@contextlib.contextmanager
def _ours(strategy: str) -> Iterator[tuple[Arm, Callable[[], list[Any]]]]:
    with (
        _place() as place,
        _cluster(QUICKLY_DEAD | {"PYTHONPATH": f"{place}:{COMMON['PYTHONPATH']}"}) as cluster,
    ):
        (place / "recovery_model.py").write_text(FACTORY)
        run = locate(str(place / "runs" / "bench"))
        command = [
            str(ROOT / "jobs" / "train.py"),
            "name=bench",
            f"strategy={strategy}",
            "precision=fp32",
            "steps=1000000",
            "optim.decay_steps=1000",
            "model=custom",
            "model.factory=recovery_model:make",
            "data=synthetic",
            "batch.sequence=24",
            f"batch.global_size={SAMPLES}",
            f"batch.micro_size={SAMPLES}",
            f"scale.workers={WORKERS}",
            "scale.min_workers=1",
            "scale.max_failures=-1",
            "checkpoint.every_steps=0",
            "report.eval_every_steps=0",
            "report.live=false",
        ]
        with _driver(command, place, cluster) as process:

            def steps() -> list[tuple[float, int, int]]:
                events = read_events(run)
                sizes = {
                    event.attempt: event.fields["world"]
                    for event in events
                    if event.kind is EventKind.attempt_started
                }
                # A group says so once its first step is held by all of its ranks.
                first = {
                    event.attempt: event.at_s
                    for event in events
                    if event.kind is EventKind.rejoined
                }
                return [
                    (max(event.at_s, first.get(event.attempt, 0.0)), event.attempt, size)
                    for event in events
                    if event.kind is EventKind.step
                    and (size := sizes.get(event.attempt, 0))
                    and (event.attempt == 1 or event.attempt in first)
                ]

            arm = Arm(cluster, steps, process)
            arm.wait(WORKERS, arm.wait(WORKERS, 0.0) + SETTLE_S)
            yield arm, lambda: read_events(run)


def _importing(place: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{place}:{COMMON['PYTHONPATH']}"}


@contextlib.contextmanager
def _rival(strategy: str, arm: str) -> Iterator[Arm]:
    environment = QUICKLY_DEAD | TUNED if arm == "tuned" else {}
    with _place() as place, _cluster(environment) as cluster:
        log = place / "steps.jsonl"
        log.touch()
        spec = {
            "strategy": strategy,
            "model": MODEL,
            "samples": SAMPLES,
            "workers": WORKERS,
            "pause_s": PAUSE_S,
            "steps": str(log),
        }
        (place / "spec.json").write_text(json.dumps(spec))
        script = str(Path(__file__).with_name("ray_elastic.py"))
        with _driver([script, str(place / "spec.json"), arm], place, cluster) as process:

            def steps() -> list[tuple[float, int, int]]:
                lines = [
                    json.loads(line)
                    for line in log.read_text().splitlines(keepends=True)
                    if line.endswith("\n")
                ]
                return [(line["at_s"], 0, line["world"]) for line in lines]

            found = Arm(cluster, steps, process)
            found.wait(WORKERS, found.wait(WORKERS, 0.0) + SETTLE_S)
            yield found


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="recovery-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _cluster(environment: dict[str, str]) -> Iterator[Nodes]:
    wanted = COMMON | environment
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with local_cluster(WORKERS, head_cpus=0) as cluster:
            yield cluster
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _driver(command: list[str], place: Path, cluster: Nodes) -> Iterator[subprocess.Popen[bytes]]:
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


def main() -> None:
    """Measure all arms, strategy by strategy."""
    rounds = parse_rounds(__doc__ or "", rounds=10, quick=2)
    raw: dict[str, dict[str, list[float]]] = {}
    lost = {"announced": 0, "unannounced": 0}
    stalls: list[float] = []
    for strategy, kills, rivals in (
        ("ddp", rounds, rounds),
        ("fsdp2", rounds // 2, 0),
        ("deepspeed_z2", rounds // 2, rounds // 4),
    ):
        seconds = raw.setdefault(strategy, {})
        with _ours(strategy) as (arm, read):
            seconds["ours"] = [arm.kill() for _ in range(max(1, kills))]
            for _ in range(max(1, kills // 3)):
                arm.drain()
            changes = [event.fields for event in read() if event.kind is EventKind.rejoined]
        for change in changes:
            announced = change["cause"] != "kill"
            key = "announced" if announced else "unannounced"
            lost[key] += change["redone"]
            if change["cause"] == "drain":
                stalls.append(change["stall_s"])
        print(f"{strategy} ours: {seconds['ours']}", flush=True)
        if rivals:
            with _rival(strategy, "tuned") as rival:
                seconds["tuned"] = [rival.kill() for _ in range(max(1, rivals // 2))]
            print(f"{strategy} tuned: {seconds['tuned']}", flush=True)
        if strategy == "ddp":
            with _rival(strategy, "shipped") as rival:
                seconds["shipped"] = [rival.kill() for _ in range(max(1, rounds // 5))]
            print(f"{strategy} shipped: {seconds['shipped']}", flush=True)
    median = {
        (strategy, arm): statistics.median(found)
        for strategy, arms in raw.items()
        for arm, found in arms.items()
    }
    slowest = max(median["ddp", "ours"], median["fsdp2", "ours"])
    ours = sorted(raw["ddp"]["ours"])
    figures = {
        "vs_tuned_ray": slowest / median["ddp", "tuned"],
        "vs_default_ray": slowest / median["ddp", "shipped"],
        "deepspeed_vs_tuned_ray": median["deepspeed_z2", "ours"] / median["deepspeed_z2", "tuned"],
        "p95_vs_median": ours[-1 - len(ours) // 20] / median["ddp", "ours"],
        "steps_lost_announced": float(lost["announced"]),
        "steps_lost_unannounced": float(lost["unannounced"]),
        "drain_stall_s": statistics.median(stalls),
    }
    tell("recovery", figures, rounds, raw)


if __name__ == "__main__":
    main()
