"""Seconds from a node's SIGKILL to the next committed step, over Ray Train's own elasticity.

Every arm trains on three nodes of one machine, loses one to SIGKILL, goes on with two, and gets a
third again. A step is committed when all ranks of the new group have taken it. The arms are

    ours       `jobs/train.py`, which saves nothing to storage before its end
    tuned      Ray Train with the best settings known for it, see `TUNED` and `ray_elastic._tune`
    shipped    Ray Train as it is installed

    vs_tuned_ray              ours over tuned, the slower of DDP and FSDP2
    vs_default_ray            the same over shipped
    deepspeed_vs_tuned_ray    ours over tuned, the slowest ZeRO stage over stage 2
    p95_vs_median             95th percentile of ours over its median, all strategies
    steps_lost_announced      steps that were taken twice where a node was drained, or joined
    steps_lost_unannounced    the same where it was killed
    states_equal              share of changes after which the weights and moments of all ranks had
                              the checksum of what the group before held
    drain_stall_s             seconds that training stood still for a node to leave on purpose
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.bench.arena import (
    COMMON,
    PATIENCE_S,
    QUICKLY_DEAD,
    Steps,
    make_cluster,
    make_place,
    start_driver,
)
from tests.bench.contract import parse_rounds, tell
from tests.kit.cluster import Nodes
from tidemill.report.events import read_events
from tidemill.spec.progress import EventKind
from tidemill.storage import locate

WORKERS = 3
SAMPLES = 12
PAUSE_S = 0.15
PAUSE = {"STEP_PAUSE_S": str(PAUSE_S)}
MODEL = {"layers": 4, "width": 128, "heads": 4}
SETTLE_S = 4.0
TUNED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "4",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
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
        make_place() as place,
        make_cluster(WORKERS, QUICKLY_DEAD | PAUSE | _importing(place)) as cluster,
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
        with start_driver(command, place, cluster) as process:

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
    environment = PAUSE | (QUICKLY_DEAD | TUNED if arm == "tuned" else {})
    with make_place() as place, make_cluster(WORKERS, environment) as cluster:
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
        with start_driver([script, str(place / "spec.json"), arm], place, cluster) as process:

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


def _measure_ours(strategy: str, kills: int) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of each recovery, and the changes of the group with what was taken over."""
    with _ours(strategy) as (arm, read):
        seconds = [arm.kill() for _ in range(kills)]
        for _ in range(max(1, kills // 5)):
            arm.drain()
        events = read()
    taken = {event.attempt: event.fields for event in events if event.kind is EventKind.restored}
    changes = [
        {
            "redone": event.fields["redone"],
            "cause": event.fields["cause"],
            "stall_s": event.fields["stall_s"],
            "source": taken[event.attempt]["source"],
            "equal": "checksum" in taken[event.attempt],
        }
        for event in events
        if event.kind is EventKind.rejoined
    ]
    print(f"{strategy} ours: {seconds}", flush=True)
    return seconds, changes


def _measure_rival(strategy: str, arm: str, kills: int) -> list[float]:
    with _rival(strategy, arm) as rival:
        seconds = [rival.kill() for _ in range(kills)]
    print(f"{strategy} {arm}: {seconds}", flush=True)
    return seconds


def main() -> None:
    """Measure all arms, strategy by strategy."""
    rounds = parse_rounds(__doc__ or "", rounds=10, quick=2)
    half, fifth = max(1, rounds // 2), max(1, rounds // 5)
    raw: dict[str, dict[str, list[float]]] = {}
    changes: list[dict[str, Any]] = []
    for strategy, kills, rivals in (
        ("ddp", rounds, {"tuned": half, "shipped": fifth}),
        ("fsdp2", rounds, {}),
        ("deepspeed_z1", half, {}),
        ("deepspeed_z2", rounds, {"tuned": half}),
        ("deepspeed_z3", half, {}),
    ):
        ours, changed = _measure_ours(strategy, kills)
        changes += [{"strategy": strategy} | change for change in changed]
        raw[strategy] = {"ours": ours} | {
            arm: _measure_rival(strategy, arm, count) for arm, count in rivals.items()
        }
    median = {
        (strategy, arm): statistics.median(found)
        for strategy, arms in raw.items()
        for arm, found in arms.items()
    }
    slowest = max(median["ddp", "ours"], median["fsdp2", "ours"])
    zero = max(median[strategy, "ours"] for strategy in raw if strategy.startswith("deepspeed"))
    every = sorted(seconds / median[name, "ours"] for name in raw for seconds in raw[name]["ours"])
    lost = {
        announced: sum(
            change["redone"] for change in changes if (change["cause"] != "kill") is announced
        )
        for announced in (True, False)
    }
    figures = {
        "vs_tuned_ray": slowest / median["ddp", "tuned"],
        "vs_default_ray": slowest / median["ddp", "shipped"],
        "deepspeed_vs_tuned_ray": zero / median["deepspeed_z2", "tuned"],
        "p95_vs_median": every[-1 - len(every) // 20],
        "steps_lost_announced": float(lost[True]),
        "steps_lost_unannounced": float(lost[False]),
        "states_equal": statistics.mean(change["equal"] for change in changes),
        "drain_stall_s": statistics.median(
            change["stall_s"] for change in changes if change["cause"] == "drain"
        ),
    }
    tell("recovery", figures, rounds, {"seconds": raw, "changes": changes})


if __name__ == "__main__":
    main()
