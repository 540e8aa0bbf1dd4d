"""Trace: when machines come and go.

A trace is a set of stays: a machine is there from one moment to another. All that is done to a
trace is plain in that form, while whoever replays one wants events in order and gets them from it.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, replace
from enum import Enum


class Kind(Enum):
    """What happens to a machine."""

    join = "join"
    kill = "kill"
    drain = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """Something that happens to a machine.

    Attributes:
        at_s: When, in seconds since the trace began.
        kind: `kill` takes it at once, `drain` announces that it will be taken.
        node: Its name.
        deadline_s: Seconds until it is taken, for `drain`; 0 for the others.
    """

    at_s: float
    kind: Kind
    node: str
    deadline_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """The time for which one machine is there.

    Attributes:
        node: Its name; one that comes back is another stay.
        from_s: When it comes.
        until_s: When it is taken; infinite if that is after the end of the trace.
        notice_s: Seconds before it is taken at which that is announced; 0 if it is not.
    """

    node: str
    from_s: float
    until_s: float = math.inf
    notice_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Machines that come and go.

    Attributes:
        name: What it is of.
        stays: Of all machines, by when they come.
        duration_s: Its length.
    """

    name: str
    stays: tuple[Stay, ...]
    duration_s: float

    @property
    def events(self) -> list[TraceEvent]:
        """What happens, in order; at one moment, machines go before others come."""
        found: list[TraceEvent] = []
        for stay in self.stays:
            found.append(TraceEvent(at_s=stay.from_s, kind=Kind.join, node=stay.node))
            if stay.until_s <= self.duration_s:
                found.append(
                    TraceEvent(
                        at_s=stay.until_s - stay.notice_s,
                        kind=Kind.drain if stay.notice_s else Kind.kill,
                        node=stay.node,
                        deadline_s=stay.notice_s,
                    )
                )
        return sorted(found, key=lambda event: (event.at_s, event.kind is Kind.join))

    @property
    def node_s(self) -> float:
        """Node-seconds in all."""
        ends = ((min(stay.until_s, self.duration_s), stay.from_s) for stay in self.stays)
        return math.fsum(until - since for until, since in ends)

    def up_at(self, at_s: float) -> int:
        """Machines that are there at a moment."""
        return sum(stay.from_s <= at_s < stay.until_s for stay in self.stays)

    def window(self, start_s: float, duration_s: float) -> Trace:
        """The part that begins at `start_s`; what is there by then comes at its second 0."""
        end_s = start_s + duration_s
        found: list[Stay] = []
        for stay in self.stays:
            since = max(stay.from_s, start_s)
            if since < min(stay.until_s, end_s):
                taken = stay.until_s <= end_s
                until = stay.until_s - start_s if taken else math.inf
                notice_s = min(stay.notice_s, stay.until_s - since) if taken else 0.0
                found.append(
                    replace(stay, from_s=since - start_s, until_s=until, notice_s=notice_s)
                )
        return Trace(name=self.name, stays=_by_arrival(found), duration_s=duration_s)

    def clipped(self, nodes: int) -> Trace:
        """At most `nodes` machines at a time, as if no more were asked for.

        One that is taken is replaced at once where the trace has another one to spare.
        """
        found: list[Stay] = []
        held: list[float] = []  # when those in use are taken, the next one first
        for stay in _by_arrival(self.stays):
            since = stay.from_s
            if len(held) == nodes:
                since = max(since, held[0])
                if since >= min(stay.until_s, self.duration_s):
                    continue  # nobody asked for it while it was there
                heapq.heappop(held)
            heapq.heappush(held, stay.until_s)
            notice_s = min(stay.notice_s, stay.until_s - since)
            found.append(replace(stay, from_s=since, notice_s=notice_s))
        return replace(self, stays=_by_arrival(found))

    def thinned(self, nodes: int) -> Trace:
        """A share of the machines, evenly chosen, so that there are at most `nodes` at a time.

        Where a trace has half of its machines, so has this one.
        """
        lanes: list[int] = []
        busy: list[tuple[float, int]] = []  # until when each lane has a machine
        free: list[int] = []
        for stay in self.stays:
            while busy and busy[0][0] <= stay.from_s:
                heapq.heappush(free, heapq.heappop(busy)[1])
            lanes.append(heapq.heappop(free) if free else len(busy))
            heapq.heappush(busy, (stay.until_s, lanes[-1]))
        most = max(lanes, default=0) + 1
        kept = {lane for lane in range(most) if (lane + 1) * nodes // most > lane * nodes // most}
        chosen = [stay for stay, lane in zip(self.stays, lanes, strict=True) if lane in kept]
        return replace(self, stays=tuple(chosen))

    def scaled(self, speed: float) -> Trace:
        """The same in a shorter time: a second of it lasts 1 / `speed` seconds."""
        stays = (
            replace(
                stay,
                from_s=stay.from_s / speed,
                until_s=stay.until_s / speed,
                notice_s=stay.notice_s / speed,
            )
            for stay in self.stays
        )
        return replace(self, stays=tuple(stays), duration_s=self.duration_s / speed)

    def with_notice(self, notice_s: float) -> Trace:
        """The same where machines are taken `notice_s` after that is announced; 0 is not at all."""
        stays = (
            replace(stay, notice_s=min(notice_s, stay.until_s - stay.from_s))
            if stay.until_s <= self.duration_s
            else stay
            for stay in self.stays
        )
        return replace(self, stays=tuple(stays))


def draw_poisson(
    *,
    nodes: int,
    mean_s: float,
    replace_s: float,
    duration_s: float,
    seed: int,
    least: int = 1,
) -> Trace:
    """Machines that are taken at random, each replaced after a while.

    Args:
        nodes: Machines at the beginning, and at most.
        mean_s: Mean of the exponential time between two that are taken, over all of them.
        replace_s: Seconds until another one comes in its place.
        duration_s: Length of the trace.
        seed: The same seed gives the same trace.
        least: Never leave fewer than this; what would is left out.
    """
    dice = random.Random(seed)
    up = {f"node{number}": 0.0 for number in range(1, nodes + 1)}
    coming: list[float] = []
    stays: list[Stay] = []
    number, at_s = nodes, 0.0
    while (at_s := at_s + dice.expovariate(1 / mean_s)) < duration_s:
        while coming and coming[0] <= at_s:
            number += 1
            up[f"node{number}"] = heapq.heappop(coming)
        if len(up) > least:
            victim = dice.choice(list(up))
            stays.append(Stay(node=victim, from_s=up.pop(victim), until_s=at_s))
            heapq.heappush(coming, at_s + replace_s)
    for since in sorted(since for since in coming if since < duration_s):
        number += 1
        up[f"node{number}"] = since
    stays += [Stay(node=node, from_s=since) for node, since in up.items()]
    name = f"poisson, one taken every {mean_s:g} s"
    return Trace(name=name, stays=_by_arrival(stays), duration_s=duration_s)


def _by_arrival(stays: list[Stay] | tuple[Stay, ...]) -> tuple[Stay, ...]:
    return tuple(sorted(stays, key=lambda stay: stay.from_s))
