"""Seconds from the command to the first step of the main job, over a bare `TorchTrainer`.

Both arms are fresh processes with a Ray of their own and end with their first optimizer step taken
on both ranks. Ours starts from an empty directory, so it packs the corpus too; its parts:

    look     compose, preflight, corpus: until the run is announced
    place    Ray, controller and workers: until rank 0 begins
    build    model, engine, store: until the first step begins
    step     the first step itself
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from tests.bench.contract import alternate, parse_rounds, ratio, tell
from tidemill.compose import compose
from tidemill.report.events import read_events
from tidemill.spec.progress import EventKind
from tidemill.spec.run import RunSpec
from tidemill.storage import locate

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT / "platform"),
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
}
TIMEOUT_S = 300


def run_ours(parts: dict[str, list[float]]) -> float:
    """Seconds to the first step of `python jobs/train.py steps=1`."""
    place = tempfile.mkdtemp(prefix="cold-")
    began_s = time.time()
    with _process(str(ROOT / "jobs" / "train.py"), "steps=1", cwd=place) as process:
        assert process.stdout is not None
        looked_s = next(time.time() for line in process.stdout if line.startswith("starting"))
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    events = read_events(locate(place) / "runs" / "hello")
    placed_s = next(e.at_s for e in events if e.kind is EventKind.attempt_started)
    step = next(e for e in events if e.kind is EventKind.step)
    shutil.rmtree(place)
    marks = (began_s, looked_s, placed_s, step.at_s - step.fields["seconds"], step.at_s)
    for name, start, end in zip(("look", "place", "build", "step"), marks, marks[1:], strict=False):
        parts.setdefault(name, []).append(end - start)
    return step.at_s - began_s


def run_bare(*arguments: str) -> float:
    """Seconds to the first step of the bare script."""
    began_s = time.time()
    with _process(str(Path(__file__).with_name("bare_ray.py")), *arguments) as process:
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    return float(out.rsplit("first step at", 1)[1]) - began_s


@contextlib.contextmanager
def _process(*command: str, cwd: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process whose whole group is gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def main() -> None:
    """Measure."""
    rounds = parse_rounds(__doc__ or "", rounds=7, quick=2)
    batch = compose([], config_name="config", schema=RunSpec).batch
    sizes = [str(n) for n in (batch.global_size, batch.micro_size, batch.sequence, 2)]
    parts: dict[str, list[float]] = {}
    seconds = alternate({"ours": lambda: run_ours(parts), "bare": lambda: run_bare(*sizes)}, rounds)
    figures = {
        "vs_bare_ray": ratio(seconds["ours"], seconds["bare"]),
        "seconds": statistics.median(seconds["ours"]),
        **{f"{name}_s": statistics.median(spent) for name, spent in parts.items()},
    }
    tell("cold_start", figures, rounds, {**seconds, "parts": parts})


if __name__ == "__main__":
    main()
