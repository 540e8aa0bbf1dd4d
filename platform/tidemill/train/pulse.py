"""Pulse: what a rank is doing right now, for whoever watches from another thread of its process.

All ranks stand still when one of them does. Only how far each one came tells which one it was, so
a beat says that, and beats of different ranks can be compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Phase(StrEnum):
    """What a rank does, in the order in which it comes to it.

    Whatever follows an update already carries the number of the next step, so that a step begins
    with what is left to do about the last one.
    """

    starting = "starting"
    keep = "keep"
    evaluate = "evaluate"
    save = "save"
    data = "data"
    agree = "agree"
    accumulate = "accumulate"
    loss = "loss"
    settle = "settle"
    update = "update"
    leaving = "leaving"
    parked = "parked"

    @property
    def place(self) -> int:
        """How far into a step it is."""
        return PLACES[self]


PLACES = {phase: place for place, phase in enumerate(Phase)}


class Beat(NamedTuple):
    """One sign of life; a tuple, because there are a dozen in every step.

    Attributes:
        step: Number of the step that the rank is in.
        phase: What it does there.
        at_s: Since when, by the monotonic clock of its machine.
        lap: Beats of this phase in this step before this one.
    """

    step: int
    phase: Phase
    at_s: float
    lap: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How fast a rank is by itself, whatever its neighbours do.

    Attributes:
        number: Measurements so far; a reading sums up the newest of them.
        compute_s: Seconds for a fixed piece of arithmetic.
        data_s: Seconds that a step waits for its samples.
    """

    number: int
    compute_s: float
    data_s: float


class Pulse:
    """The newest beat of this process; written by the thread that trains, read by others.

    Attributes:
        newest: What that thread does.
        reading: How fast it is; None until that was measured.
    """

    def __init__(self) -> None:
        self.newest = Beat(-1, Phase.starting, time.monotonic())
        self.reading: Reading | None = None

    def beat(self, step: int, phase: Phase) -> None:
        """Note that `phase` of `step` begins, or another lap of it; takes about a microsecond."""
        last = self.newest
        lap = last.lap + 1 if last.phase is phase and last.step == step else 0
        self.newest = Beat(step, phase, time.monotonic(), lap)
