"""Made-up histories of runs, told event by event."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.spec.progress import Event, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidemill.storage import Location

SAMPLES = 8
TOKENS = 1000
START_S = 1_800_000_000.0
LN2 = math.log(2)
NO_SPACE = "cannot write runs/a/checkpoints/step-{step:010}-a0001: no space is left on the disk"


class History:
    """Collects events; time passes by what the events say it took."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now_s = START_S
        self.attempt = 0

    def add(self, kind: EventKind, **fields: Any) -> None:
        self.events.append(
            Event(kind=kind, at_s=self.now_s, attempt=self.attempt, fields=fields),
        )

    def start(self, world: int = 2, restored: int | None = None, source: str | None = None) -> None:
        self.attempt += 1
        self.now_s += 1
        self.add(
            EventKind.attempt_started,
            world=world,
            strategy="ddp",
            precision="fp32",
            accumulate=1,
            parameters=1_234_567,
            device="cpu",
            corpus="c0ffee" * 10,
        )
        if restored is not None:
            known = {"source": source} if source else {}
            self.add(EventKind.restored, step=restored, samples=restored * SAMPLES, **known)

    def steps(self, first: int, last: int, *, seconds: float = 0.5, loss: float = 2.0) -> None:
        """Take the steps numbered `first` to `last`."""
        for step in range(first, last + 1):
            self.step(step, seconds=seconds, loss=loss)

    def step(self, step: int, *, seconds: float = 0.5, loss: float = 2.0, **other: Any) -> None:
        self.now_s += seconds
        fields = {
            "step": step,
            "loss": loss,
            "lr": 1e-3,
            "grad_norm": 1.0,
            "applied": True,
            "tokens": TOKENS,
            "seconds": seconds,
            "samples": (step + 1) * SAMPLES,
        }
        self.add(EventKind.step, **(fields | other))

    def evaluate(self, step: int, loss: float = 2.0, *, byte_level: bool = True) -> None:
        bits = loss / LN2 if byte_level else None
        self.add(EventKind.evaluated, step=step, loss=loss, bits_per_byte=bits, samples=64)

    def save(self, step: int, *, stall_s: float | None = None) -> None:
        """Commit a checkpoint; without `stall_s`, as versions did that stopped training for it."""
        name = f"step-{step:010}-a{self.attempt:04}"
        cost = {"bytes": 3 * 2**20, "seconds": 0.25}
        stall = {} if stall_s is None else {"stall_s": stall_s}
        self.add(EventKind.checkpoint_saved, step=step, name=name, **cost, **stall)

    def fail_save(
        self, step: int, reason: str = NO_SPACE, *, tries: int = 1, retry_in_s: float | None = 0.5
    ) -> None:
        """Fail to save; for good without `retry_in_s`."""
        self.add(
            EventKind.checkpoint_failed,
            step=step,
            reason=reason.format(step=step),
            tries=tries,
            retry_in_s=retry_in_s,
        )

    def keep_near(self, step: int, nodes: int = 2) -> None:
        self.add(EventKind.near_kept, step=step, nodes=nodes, bytes=3 * 2**20, seconds=0.05)

    def rejoin(self, step: int, cause: str = "kill", **other: Any) -> None:
        """Tell how the workers changed, once their first step is taken."""
        fields = {
            "cause": cause,
            "before": 3,
            "world": 2,
            "kept": 2,
            "fresh": 0,
            "lost": ["ab" * 28],
            "detect_s": 0.1,
            "stop_s": 0.05,
            "decide_s": 0.001,
            "spawn_s": 0.0,
            "join_s": 0.2,
            "load_s": 0.3,
            "first_step_s": 0.5,
            "stall_s": 1.151,
            "redone": 1,
        }
        self.add(EventKind.rejoined, step=step, **(fields | other))

    def finish(self, step: int) -> None:
        self.add(EventKind.finished, step=step, loss=1.5, seconds=80.0)


def write_log(run: Location, events: Iterable[Event]) -> None:
    """Write events as a run leaves them, with their own times."""
    directory = Path(run.path) / "events"
    directory.mkdir(parents=True, exist_ok=True)
    for event in events:
        line = {"kind": event.kind, "at_s": event.at_s, "attempt": event.attempt}
        with (directory / f"attempt-{event.attempt:04}.jsonl").open("a") as file:
            file.write(json.dumps(line | {"fields": event.fields}) + "\n")


def environment() -> dict[str, str]:
    """The environment in which another Python finds what this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
