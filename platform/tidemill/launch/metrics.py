"""Step metrics for Ray's dashboard and Prometheus, beside the event log."""

from __future__ import annotations

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

    def record(self, kind: EventKind, **fields: Any) -> None:
        """See `Recorder.record`."""
        self._recorder.record(kind, **fields)
        if kind is EventKind.step:
            for name in ("loss", "lr", "grad_norm"):
                self._gauges[name].set(fields[name])
            self._gauges["step"].set(fields["step"] + 1)
            self._gauges["tokens_per_second"].set(fields["tokens"] / fields["seconds"])
