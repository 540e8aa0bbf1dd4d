"""Tokens trained while nodes are killed at random, over those of a run that nobody disturbs.

Four workers on nodes of one machine, one each, and one node more with a spare (`scale.spares=1`). A
killed one, any of the five, is replaced at once by another, which has to start its raylet and its
worker's process first. A worker's compute is a pause in proportion to its samples, so that four
workers are four machines whatever the cores: a group that is smaller for a while is slower. A token
counts once, when its step is part of the curve.

    tokens_at_60s     where a node is killed every 60 s in the mean (Poisson), for ten minutes
    tokens_at_15s     every 15 s, for five minutes
    bare_at_15s       the same with four nodes and no spare, for half of that
    loss_difference   the largest of any step's loss from the curve of one process alone
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.bench.arena import PATIENCE_S, make_cluster, make_place, start_driver
from tests.bench.contract import parse_rounds, tell
from tests.kit.cluster import Nodes
from tests.kit.doors import curve_of, open_door, run_at
from tests.kit.slow_run import environment, overrides_of, undisturbed
from tests.kit.slow_run import make_place as fill_place
from tests.kit.world import run_world
from tidemill.report.events import joined_steps, read_events
from tidemill.spec.progress import EventKind
from tidemill.storage import Location

WORKERS = 4
SAMPLES = 24
MICRO = 2
PAUSE_S = 0.08
"""Of each micro batch."""
ARMS = {
    "calm": (0.0, 0, 120.0),
    "tokens_at_60s": (60.0, 1, 600.0),
    "tokens_at_15s": (15.0, 1, 300.0),
    "bare_at_15s": (15.0, 0, 150.0),
}
"""Seconds between two kills in the mean (0: none), spares, and seconds for which it is measured."""
QUICK_S = 60.0
SETTLE_S = 5.0
SEED = 1


def play(mean_s: float, spares: int, lasts_s: float) -> dict[str, Any]:
    """One run, from when its group is whole.

    Args:
        mean_s: Seconds between two kills, in the mean; 0 kills nobody.
        spares: Nodes with a spare process.
        lasts_s: Seconds for which samples are counted.
    """
    with make_place() as scratch:
        place = fill_place(scratch)
        with make_cluster(WORKERS + spares, environment(place, PAUSE_S)) as cluster:
            run = run_at(place, "stress")
            command = [
                str(ROOT / "jobs" / "train.py"),
                *overrides_of("stress", 1_000_000),
                f"batch.global_size={SAMPLES}",
                f"batch.micro_size={MICRO}",
                f"scale.workers={WORKERS}",
                f"scale.spares={spares}",
                "scale.min_workers=1",
                "scale.max_failures=-1",
                "report.live=false",
            ]
            with start_driver(command, place, cluster) as driver:
                began_s = _wait_until_whole(run, driver)
                kills = list(_kill(cluster, mean_s, began_s + lasts_s))
                ended_s = began_s + lasts_s
                driver.send_signal(signal.SIGTERM)
                code = driver.wait(PATIENCE_S)
        errors = (place / "stderr.txt").read_text()
        audit = open_door("audit", "run=stress", cwd=place)
        curve = curve_of(run)
        (alone,) = run_world(undisturbed, 1, str(place), run, len(curve), env={"STEP_PAUSE_S": "0"})
        changes = [
            {"at_s": event.at_s - began_s, **event.fields}
            for event in read_events(run)
            if event.kind is EventKind.rejoined
        ]
        reached = [_reached(run, at_s) for at_s in (began_s, ended_s)]
    found = {
        "samples_per_s": (reached[1] - reached[0]) / lasts_s,
        "lasts_s": lasts_s,
        "steps": len(curve),
        "loss_difference": max(abs(a - b) for a, b in zip(curve, alone, strict=True)),
        "final_loss": curve[-1],
        "kills_s": kills,
        "redone": sum(change["redone"] for change in changes),
        "audit": audit.code == 0 and code == 128 + signal.SIGTERM,
        "code": code,
        "said": (audit.out + audit.err)[-1000:] + errors[-2000:],
        "changes": changes,
    }
    print(f"{mean_s:g} s, {spares} spares: {found['samples_per_s']:.2f} samples/s", flush=True)
    return found


def _wait_until_whole(run: Location, driver: subprocess.Popen[bytes]) -> float:
    """When a group of all nodes had trained for a while, in seconds since the epoch."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and driver.poll() is None:
        events = read_events(run)
        whole = [
            event.attempt
            for event in events
            if event.kind is EventKind.attempt_started and event.fields["world"] == WORKERS
        ]
        steps = [event.at_s for event in events if event.kind is EventKind.step]
        if whole and steps and steps[-1] > steps[0] + SETTLE_S:
            return time.time()
        time.sleep(0.2)
    raise RuntimeError(f"no group of {WORKERS} workers")


def _kill(cluster: Nodes, mean_s: float, until_s: float) -> Iterator[float]:
    """Kill and replace nodes until a moment; yields seconds of each kill from the first call."""
    began_s, draw = time.time(), random.Random(SEED)
    at_s = began_s
    while mean_s and (at_s := at_s + draw.expovariate(1 / mean_s)) < until_s:
        time.sleep(max(0.0, at_s - time.time()))
        yield time.time() - began_s
        cluster.lose(draw.choice(cluster.ids[1:]))
        cluster.add()
    time.sleep(max(0.0, until_s - time.time()))


def _reached(run: Location, at_s: float) -> int:
    """Samples of the curve by a moment."""
    steps = [event for event in joined_steps(read_events(run)) if event.at_s <= at_s]
    return steps[-1].fields["samples"] if steps else 0


def main() -> None:
    """Run the arms, print the figures as the last line."""
    rounds = parse_rounds(__doc__ or "", rounds=2, quick=1)
    arms = {
        name: play(mean_s, spares, lasts_s if rounds > 1 else QUICK_S)
        for name, (mean_s, spares, lasts_s) in ARMS.items()
    }
    calm_per_s = arms["calm"]["samples_per_s"]
    figures: dict[str, float | None] = {
        name: arm["samples_per_s"] / calm_per_s for name, arm in arms.items() if name != "calm"
    }
    figures["loss_difference"] = max(arm["loss_difference"] for arm in arms.values())
    sound = all(arm["audit"] for arm in arms.values())
    tell("stress", figures if sound else dict.fromkeys(figures), rounds, arms)


if __name__ == "__main__":
    main()
