"""Observed: goodput and costs of a real run, from its events and from the log of its machines.

It takes both: a run cannot know when a machine was killed, only when it noticed, nor how long one
stood idle. All times are seconds since the epoch, by one clock.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

from tidemill.plan.costs import Costs, Stages
from tidemill.plan.goodput import GoodputReport, Span, Use, add_up
from tidemill.plan.trace import Stay
from tidemill.spec.progress import Event, EventKind

PLANNED = frozenset({"drain", "grow", "share"})
BEFORE_S = 2.0
"""Seconds for which a worker goes on without the machine that it was on."""
MEASURED_STAGES = tuple(
    stage.name for stage in fields(Stages) if stage.name not in {"detect_s", "first_step_s"}
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that a group took: its number, and from when to when."""

    step: int
    from_s: float
    until_s: float


@dataclass(slots=True, kw_only=True)
class Group:
    """What the events of one attempt say.

    Attributes:
        attempt: Its number.
        world: Its workers.
        taken: Its steps, in order.
        cause: Why it formed; empty for the first.
        stages: Seconds of the stages that led to it.
        saves_s: Seconds that each of its saves stopped it for.
        failed_s: When it was said to have failed; infinite if it was not.
    """

    attempt: int
    world: int = 0
    taken: list[Taken] = field(default_factory=list[Taken])
    cause: str = ""
    stages: Stages = field(default_factory=Stages)
    saves_s: list[float] = field(default_factory=list[float])
    failed_s: float = math.inf

    @property
    def usual_s(self) -> float:
        """Seconds of a step, typically."""
        return statistics.median(step.until_s - step.from_s for step in self.taken)


def read_groups(events: Iterable[Event]) -> list[Group]:
    """The groups that took steps, in order.

    Args:
        events: Of a run that recorded every step.
    """
    groups: dict[int, Group] = {}
    for event in sorted(events, key=lambda event: event.at_s):
        group = groups.setdefault(event.attempt, Group(attempt=event.attempt))
        told = event.fields
        match event.kind:
            case EventKind.attempt_started:
                group.world = int(told["world"])
            case EventKind.step:
                began_s = event.at_s - float(told["seconds"])
                if group.taken:
                    began_s = max(began_s, group.taken[-1].until_s)
                group.taken.append(Taken(int(told["step"]), began_s, event.at_s))
            case EventKind.rejoined:
                group.cause = str(told["cause"])
                known = {name: float(told.get(name) or 0.0) for name in MEASURED_STAGES}
                group.stages = Stages(**known)
            case EventKind.checkpoint_saved:
                group.saves_s.append(float(told.get("stall_s", told["seconds"])))
            case EventKind.failed:
                group.failed_s = min(group.failed_s, event.at_s)
            case _:
                pass
    return [group for _, group in sorted(groups.items()) if group.taken]


def observe(
    events: Iterable[Event],
    stays: Sequence[Stay],
    *,
    source: str,
    from_s: float,
    until_s: float,
    least: int = 1,
) -> GoodputReport:
    """Account for a real run.

    Args:
        events: Of a run that recorded every step.
        stays: Of its machines.
        source: What the report is of.
        from_s: Where to begin.
        until_s: Where to end.
        least: Fewest workers it goes on with.
    """
    groups = read_groups(events)
    taken = [step for group in groups for step in group.taken if from_s < step.until_s <= until_s]
    fresh = len({step.step for step in taken})
    spans = list(_spans(groups, stays))
    changes = Counter(
        group.cause for group in groups if group.cause and from_s < group.taken[0].until_s < until_s
    )
    return GoodputReport(
        source=source,
        duration_s=until_s - from_s,
        node_s=add_up(stays, spans, from_s=from_s, until_s=until_s, least=least),
        steps=fresh,
        redone=len(taken) - fresh,
        changes=dict(changes),
    )


def measure(events: Iterable[Event], stays: Sequence[Stay], usual: Costs) -> Costs:
    """What changes, steps and saves of a real run cost.

    Args:
        events: Of a run that recorded every step.
        stays: Of its machines.
        usual: Stands in for what did not happen.
    """
    groups = read_groups(events)
    kills: list[Stages] = []
    planned: dict[str, list[Stages]] = {"drain": [], "grow": []}
    ahead: list[float] = []
    back: list[float] = []
    since_s = groups[0].taken[0].from_s if groups else 0.0
    for old, new in pairwise(groups):
        change = _change(old, new, stays)
        until_s = old.taken[-1].until_s
        stages = replace(
            new.stages,
            detect_s=change.begun_s - change.failed_s,
            first_step_s=_excess(new),
        )
        if new.cause in PLANNED:
            planned.setdefault(new.cause, []).append(stages)
        else:
            kills.append(stages)
        if new.cause == "grow":
            came = sorted(stay.from_s for stay in stays if since_s < stay.from_s <= until_s)
            ahead += [until_s - at_s for at_s in came[: new.world - old.world]]
        elif new.cause == "drain":
            back += [
                stay.until_s - until_s
                for stay in stays
                if stay.until_s - stay.notice_s < until_s < stay.until_s < math.inf
            ]
        since_s = until_s
    by_world: dict[int, list[float]] = {}
    gaps: list[float] = []
    for group in groups:
        by_world.setdefault(group.world, []).extend(
            step.until_s - step.from_s for step in group.taken[1:]
        )
        gaps += [after.from_s - before.until_s for before, after in pairwise(group.taken)]
    saves = [seconds for group in groups for seconds in group.saves_s]
    steps = {world: statistics.fmean(found) for world, found in by_world.items() if found}
    return replace(
        usual,
        kill=_typical(kills, usual.kill),
        drain=_typical(planned["drain"], usual.drain),
        grow=_typical(planned["grow"], usual.grow),
        ahead_s=statistics.median(ahead) if ahead else usual.ahead_s,
        back_s=statistics.median(back) if back else usual.back_s,
        step_s=steps or usual.step_s,
        between_s=max(0.0, math.fsum(gaps) - math.fsum(saves)) / len(gaps) if gaps else 0.0,
        save_s=statistics.fmean(saves) if saves else usual.save_s,
    )


@dataclass(frozen=True, slots=True)
class _Change:
    """Between two groups: when the first ended, by a failure or by itself, and what followed."""

    failed_s: float
    begun_s: float


def _change(old: Group, new: Group, stays: Iterable[Stay]) -> _Change:
    """When a failure happened, and when the change that it led to began.

    Stages end where the new group takes its first step, so what they add up to says when they
    began; unless some group in between did not come about, which nothing but the time says.
    """
    last_s, first_s = old.taken[-1].until_s, new.taken[0].from_s
    failed_s = last_s
    if new.cause not in PLANNED:
        gone = [stay.until_s for stay in stays if last_s - BEFORE_S < stay.until_s < first_s]
        failed_s = max(last_s, min(gone, default=last_s))
    begun_s = min(first_s - new.stages.restart_s, old.failed_s)
    return _Change(failed_s, max(failed_s, begun_s))


def _spans(groups: Sequence[Group], stays: Sequence[Stay]) -> Iterable[Span]:
    """What the groups of a run did, in order."""
    frontier = 0
    before: Group | None = None
    for group in groups:
        if before is not None:
            change = _change(before, group, stays)
            stops = (before.taken[-1].until_s, change.failed_s, change.begun_s)
            uses = (Use.recompute, Use.restart if group.cause in PLANNED else Use.detect)
            for use, (since, until) in zip(uses, pairwise(stops), strict=True):
                yield Span(from_s=since, until_s=until, use=use, members=before.world)
            yield _span(change.begun_s, group.taken[0].from_s, Use.restart, group)
        slow_s = _excess(group) if before is not None else 0.0
        end_s = group.taken[0].from_s
        for step in group.taken:
            yield _span(end_s, step.from_s, Use.stall, group)
            use = Use.useful if step.step >= frontier else Use.recompute
            yield _span(step.from_s, step.from_s + slow_s, Use.restart, group)
            yield _span(step.from_s + slow_s, step.until_s, use, group)
            end_s, slow_s = step.until_s, 0.0
            frontier = max(frontier, step.step + 1)
        before = group


def _span(from_s: float, until_s: float, use: Use, group: Group) -> Span:
    return Span(from_s=from_s, until_s=until_s, use=use, members=group.world)


def _excess(group: Group) -> float:
    """What a group's first step took longer than its others."""
    first = group.taken[0]
    return max(0.0, first.until_s - first.from_s - group.usual_s)


def _typical(seen: Sequence[Stages], usual: Stages) -> Stages:
    """The median of each stage."""
    if not seen:
        return usual
    return Stages(
        **{
            stage.name: statistics.median(getattr(one, stage.name) for one in seen)
            for stage in fields(Stages)
        }
    )
