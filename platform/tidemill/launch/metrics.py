"""Step metrics for Ray's dashboard and Prometheus, beside the event log."""

from __future__ import annotations

import time
from typing import Any

from ray.util.metrics import Gauge

from tidemill.spec.progress import EventKind, Recorder, World

GAUGES = {
    "loss": "Training loss of the last step, nats per target.",
    "lr": "Learning rate of the last step.",
    "grad_norm": "Global gradient norm of the last step, before clipping.",
    "tokens_per_second": "Valid targets per second of the last step, all ranks.",
    "step": "Optimizer steps taken.",
    "workers": "Ranks of the current attempt.",
    "checkpoint_step": "Optimizer steps in the newest committed checkpoint.",
    "checkpoint_timestamp_seconds": "When it was committed, seconds since the epoch.",
    "checkpoint_seconds": "Time from its snapshot to its commit.",
    "checkpoint_stall_seconds": "Time that training stopped for it.",
    "checkpoint_failures": "Failed tries to save since it was committed.",
    "near_step": "Optimizer steps in the newest snapshot in the memory of nodes.",
}


class MeteredRecorder:
    """A recorder that also sets gauges `ray_tidemill_*`, tagged with the run's name."""

    def __init__(self, recorder: Recorder, run: str, world: World) -> None:
        """Pass every event on to `recorder`."""
        self._recorder = recorder
        self._gauges = {
            name: Gauge(f"tidemill_{name}", description=text, tag_keys=("run",))
            for name, text in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})
        self._gauges["workers"].set(world.size)
        self._set_failures(0)

    def record(self, kind: EventKind, **fields: Any) -> None:
        """See `Recorder.record`."""
        self._recorder.record(kind, **fields)
        match kind:
            case EventKind.step:
                for name in ("loss", "lr", "grad_norm"):
                    self._gauges[name].set(fields[name])
                self._gauges["step"].set(fields["step"] + 1)
                self._gauges["tokens_per_second"].set(fields["tokens"] / fields["seconds"])
            case EventKind.checkpoint_saved:
                self._gauges["checkpoint_step"].set(fields["step"])
                self._gauges["checkpoint_timestamp_seconds"].set(time.time())
                self._gauges["checkpoint_seconds"].set(fields["seconds"])
                self._gauges["checkpoint_stall_seconds"].set(fields["stall_s"])
                self._set_failures(0)
            case EventKind.checkpoint_failed:
                self._set_failures(self._failures + 1)
            case EventKind.near_kept:
                self._gauges["near_step"].set(fields["step"])
            case _:
                pass

    def flush(self) -> None:
        """See `Recorder.flush`."""
        self._recorder.flush()

    def _set_failures(self, count: int) -> None:
        """Called by one thread at a time, the one that saves."""
        self._failures = count
        self._gauges["checkpoint_failures"].set(count)
