"""Goodput: how much of a run's time went into the steps of its curve, and where the rest went."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest

from tidemill.report.ledger import Ending, RunReport
from tidemill.report.notices import number
from tidemill.report.quantities import show_duration
from tidemill.report.saves import stall_of
from tidemill.spec.progress import Event

SHORTEST_S = 0.05
"""Less is not worth a word: it would be shown as nothing."""
BY_AGREEMENT = {Ending.stopped, Ending.finished}


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Seconds that did not go into steps of the run's curve.

    Attributes:
        restarts: From the last step of an attempt to the first one of the next.
        redone: In steps that were taken back.
        waiting: For machines, or for somebody who starts the run again after it failed.
        saving: That training stopped for checkpoints.
        other: Everything else: the first start, validations, what is between two steps.
    """

    restarts: float = 0.0
    redone: float = 0.0
    waiting: float = 0.0
    saving: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """The account of a run's time.

    Attributes:
        wall_s: From the first event to the last, but for the time between a stop that somebody
            asked for and the next start.
        steps_s: Of it, in steps of the curve.
        losses: The rest.
    """

    wall_s: float
    steps_s: float
    losses: Losses

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.steps_s / self.wall_s if self.wall_s > 0 else 0.0


def measure_goodput(report: RunReport) -> Goodput:
    """Add up where the time of a run went."""
    rejoined = {event.attempt: event for event in report.rejoined}
    began_s = report.attempts[0].started_s
    wall_s = restarts_s = waiting_s = away_s = 0.0
    stepped_s: float | None = None
    for attempt, following in zip_longest(report.attempts, report.attempts[1:]):
        if attempt.steps_s is not None:
            first_s, last_s = attempt.steps_s
            gap_s = max(0.0, first_s - stepped_s) if stepped_s is not None else 0.0
            waited_s = min(gap_s, _waited(rejoined.get(attempt.attempt), away_s))
            waiting_s += waited_s
            restarts_s += gap_s - waited_s
            stepped_s, away_s = last_s, 0.0
        if following is None or attempt.ending in BY_AGREEMENT:
            wall_s += attempt.ended_s - began_s
            began_s = following.started_s if following else 0.0
            stepped_s, away_s = None, 0.0
        else:
            away_s += max(0.0, following.started_s - attempt.ended_s)
    steps_s = min(report.training_s, wall_s)
    losses = Losses(
        restarts=restarts_s,
        redone=report.redone_s,
        waiting=waiting_s,
        saving=sum(stall_of(event) for event in report.saved),
    )
    other_s = max(0.0, wall_s - steps_s - losses.total)
    return Goodput(wall_s=wall_s, steps_s=steps_s, losses=replace(losses, other=other_s))


def _waited(rejoined: Event | None, away_s: float) -> float:
    """Seconds without enough machines; where nobody measured them, those without an attempt."""
    if rejoined is None:
        return away_s
    waited_s = number(rejoined.fields, "place_s", 0.0)
    return max(0.0, waited_s) if math.isfinite(waited_s) else 0.0


def say_goodput(goodput: Goodput) -> str:
    """`93.1% of 12m 03s in steps that count; lost: 20s restarts, 5.0s redone`."""
    told = f"{goodput.share:.1%} of {show_duration(goodput.wall_s)} in steps that count"
    parts = [
        f"{show_duration(seconds)} {name}"
        for name, seconds in asdict(goodput.losses).items()
        if seconds >= SHORTEST_S
    ]
    return f"{told}; lost: {', '.join(parts)}" if parts else told
