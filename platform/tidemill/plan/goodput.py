"""Goodput: how much of the machines' time went into steps that count, and where the rest went.

Node-time is what the machines that were there add up to, each from when it was up until it was
gone, one that was announced to go included. Of it, *useful* is what the members of a group spend in
steps that the run takes for the first time. Everything else is lost, and has a name:

* detect: a member is gone, and the others have not been told yet.
* restart: a group forms, up to the first step of it and what that takes longer than usual.
* recompute: steps taken again, and the part of a step that a failure cut off.
* stall: members wait between two steps, for a save for example.
* idle: machines that are in no group: they start, wait to join, are more than the run has use for,
  have left before they go, or are fewer than the run can go on with.

The ideal is a run all of whose machines are useful all of the time. What a larger group loses
within its steps (communication, an uneven batch) is a property of the model and its batch; it is no
matter of machines that come and go, and counts as useful here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from tidemill.plan.trace import Stay


class Use(StrEnum):
    """What a machine's time went into."""

    useful = "useful"
    detect = "detect"
    restart = "restart"
    recompute = "recompute"
    stall = "stall"
    idle = "idle"


LOSSES = tuple(use for use in Use if use is not Use.useful)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What the members of a group did for a while; whoever is no member is idle.

    Attributes:
        from_s: When it began.
        until_s: When it ended.
        use: What they did.
        members: How many they were; of machines that are gone meanwhile, nothing is counted.
    """

    from_s: float
    until_s: float
    use: Use
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputReport:
    """What became of the machines' time, in a real run or in a simulated one.

    Attributes:
        source: What it is of.
        duration_s: Seconds that were looked at.
        node_s: Node-seconds by use; every use has some, if only 0.
        steps: Steps taken for the first time.
        redone: Steps taken again.
        changes: How often a group formed anew, by cause.
    """

    source: str
    duration_s: float
    node_s: Mapping[Use, float]
    steps: int
    redone: int
    changes: Mapping[str, int]

    @property
    def total_s(self) -> float:
        """Node-seconds in all."""
        return math.fsum(self.node_s.values())

    def share(self, use: Use) -> float:
        """The part of all node-time that went into it, 0 to 1."""
        return self.node_s[use] / self.total_s if self.total_s else 0.0

    @property
    def goodput(self) -> float:
        """The part that was useful, 0 to 1."""
        return self.share(Use.useful)

    def to_plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "source": self.source,
            "duration_s": self.duration_s,
            "node_s": self.total_s,
            "goodput": self.goodput,
            "lost": {use.value: self.share(use) for use in LOSSES},
            "steps": self.steps,
            "redone": self.redone,
            "changes": dict(self.changes),
        }


def add_up(
    stays: Iterable[Stay], spans: Sequence[Span], *, from_s: float, until_s: float, least: int
) -> dict[Use, float]:
    """Divide the time of machines among its uses.

    Args:
        stays: Of the machines.
        spans: What groups did, in order and without overlap.
        from_s: Where to begin.
        until_s: Where to end.
        least: Fewest machines the run goes on with; whenever there are fewer, all are idle.

    Returns:
        Node-seconds by use.
    """
    parts: dict[Use, list[float]] = {use: [] for use in Use}
    levels = _levels(stays, from_s, until_s)
    place = 0
    for begin_s, end_s, up in levels:
        used: list[float] = []
        while place < len(spans) and spans[place].until_s <= begin_s:
            place += 1
        here = place
        while here < len(spans) and spans[here].from_s < end_s:
            span = spans[here]
            seconds = min(span.until_s, end_s) - max(span.from_s, begin_s)
            members = min(span.members, up) if up >= least else 0
            if seconds > 0 and members:
                used.append(seconds * members)
                parts[span.use].append(used[-1])
            here += 1
        parts[Use.idle].append(max(0.0, (end_s - begin_s) * up - math.fsum(used)))
    return {use: math.fsum(seconds) for use, seconds in parts.items()}


def _levels(stays: Iterable[Stay], from_s: float, until_s: float) -> list[tuple[float, float, int]]:
    """How many machines there were: (from, until, how many), in order."""
    changes: dict[float, int] = {from_s: 0, until_s: 0}
    for stay in stays:
        since, until = max(stay.from_s, from_s), min(stay.until_s, until_s)
        if since < until:
            changes[since] = changes.get(since, 0) + 1
            changes[until] = changes.get(until, 0) - 1
    moments = sorted(changes)
    levels: list[tuple[float, float, int]] = []
    up = 0
    for begin_s, end_s in pairwise(moments):
        up += changes[begin_s]
        levels.append((begin_s, end_s, up))
    return levels
