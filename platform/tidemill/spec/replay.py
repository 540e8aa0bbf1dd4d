"""ReplaySpec: a trace of machines that come and go, and what is to become of it."""

from __future__ import annotations

import re
from enum import StrEnum

from tidemill.spec.base import Spec, spec

POISSON = "poisson"
TINY = (
    "experiment=parity strategy=ddp data.ragged=0 batch.global_size=840 batch.micro_size=70 "
    "checkpoint.every_steps=500"
)
"""A run that any computer can do, of which up to eight workers have even shares."""


class Shrink(StrEnum):
    """What becomes of a trace with too many machines.

    `thin` takes a share of them, so that there are more and fewer as in the whole; `clip` asks for
    no more, so that one that is taken is replaced while there are others.
    """

    thin = "thin"
    clip = "clip"


@spec
class ReplaySpec(Spec):
    """A run through machines that come and go, simulated or real.

    Attributes:
        name: Directory below `storage` for the report, and for the run if it is real.
        trace: A file, the name of a trace that Tidemill brings along, or `poisson`.
        column: Of a table with several, the one to read.
        nodes: Most machines at a time, one worker on each.
        shrink: What becomes of a trace with more: `thin` or `clip`.
        min_workers: Fewest workers the run goes on with.
        start_s: Where in the trace to begin.
        duration_s: Seconds of the trace; 0 takes it to its end.
        speed: Seconds of the trace per second of the replay.
        notice_s: Seconds of the replay for which a machine is announced to go; 0 is not at all,
            or as the trace has it.
        mean_s: For `poisson`: mean seconds between two machines that are taken.
        replace_s: For `poisson`: seconds until another one comes in its place.
        seed: For `poisson`: the same seed gives the same trace.
        step_s: Seconds that a step takes with `nodes` workers; 0 takes what was measured.
        costs_from: Name of a real replay in `storage` that has measured what changes cost; empty
            takes what this one measures if it is real, else what Tidemill brings along.
        real: Also train, on machines that are processes of this computer.
        train: Overrides for `jobs/train.py`, as in a shell: what is trained.
        storage: Directory that holds replays.
    """

    name: str = "replay"
    trace: str = "p3"
    column: str = ""
    nodes: int = 6
    shrink: Shrink = Shrink.thin
    min_workers: int = 1
    start_s: float = 0.0
    duration_s: float = 0.0
    speed: float = 1.0
    notice_s: float = 0.0
    mean_s: float = 60.0
    replace_s: float = 10.0
    seed: int = 1
    step_s: float = 0.0
    costs_from: str = ""
    real: bool = False
    train: str = TINY
    storage: str = "replays"

    def __post_init__(self) -> None:
        for key, text in (("name", self.name), ("costs_from", self.costs_from or "a")):
            self.require(
                re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._,=+-]{0,199}", text) is not None,
                key,
                f"{text!r} cannot name a directory everywhere",
                "use letters, digits and . _ , = + - (at most 200)",
            )
        self.require(bool(self.trace), "trace", "is empty", f"name a file, or use {POISSON}")
        self.require_at_least(1, "nodes", "min_workers")
        self.require(
            self.min_workers <= self.nodes,
            "min_workers",
            f"{self.min_workers} is more than nodes={self.nodes}",
            "use at most as many",
        )
        self.require_at_least(0, "start_s", "duration_s", "notice_s", "replace_s", "step_s", "seed")
        self.require_at_least(0.001, "speed", "mean_s")
        self.require(
            self.trace != POISSON or self.duration_s > 0,
            "duration_s",
            "is 0, and what is drawn at random has no end",
            "say how long, e.g. duration_s=3600",
        )
        self.require(bool(self.storage), "storage", "is empty", "name a directory")
        self.require(
            not self.real or "://" not in self.storage,
            "storage",
            f"{self.storage!r} is no directory, and a real replay needs one",
            "name a directory of this computer",
        )
