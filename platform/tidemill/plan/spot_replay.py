"""Spot replay: a run with a deadline, in spot markets as they were.

A policy is told in every step what there is and what was, and pays for what comes. Machines are
taken between two steps, with all progress since the last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.errors import SpecError
from tidemill.plan.choice import Choice, Market, Seen, Standing, choose
from tidemill.plan.spot_market import KEY, Recording, region_of

DONE_HOURS = 1e-9

Policy = Callable[[Standing, Sequence[Market]], Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """A run to replay.

    Attributes:
        work_hours: To do, at full speed.
        deadline_hours: From its start; infinite if there is none.
        start: Step in which it starts; what came before was watched.
        machines: Of its fleet.
        on_demand_usd_per_hour: Price of one machine, by region.
        boot_hours: From going to a market until it makes progress there.
        move_hours: More than that, if its state comes from another region.
        state_gb: What moves along, in 1e9 bytes.
        egress_usd_per_gb: By region that it leaves and region that it goes to; else 0.
        save_hours: Of progress, between two checkpoints; 0 if nothing is ever lost.
    """

    work_hours: float
    deadline_hours: float = math.inf
    start: int = 0
    machines: int = 1
    on_demand_usd_per_hour: Mapping[str, float]
    boot_hours: float = 0.1
    move_hours: float = 0.0
    state_gb: float = 0.0
    egress_usd_per_gb: Mapping[tuple[str, str], float] = field(
        default_factory=dict[tuple[str, str], float]
    )
    save_hours: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        usd: Paid for machines and for moving.
        moving_usd: Of that, for moving.
        finish_hours: From its start until it was done.
        met: Whether that was in time.
        changes: How often it went to a market.
        preemptions: How often one was taken from it.
        hours: Spent in each market; in none, by the empty name.
    """

    usd: float
    moving_usd: float
    finish_hours: float
    met: bool
    changes: int
    preemptions: int
    hours: Mapping[str, float]


def replay(recording: Recording, errand: Errand, policy: Policy = choose) -> Outcome:
    """Replay a run.

    After the end of the recording, there is no spot.

    Args:
        recording: What the markets do.
        errand: What there is to do.
        policy: Asked in every step where to be in it.

    Raises:
        SpecError: It cannot end: the recording does, and there is no on-demand to go on with.
    """
    run = _Run(recording, errand)
    while run.work_hours > DONE_HOURS:
        run.step(policy)
    return Outcome(
        usd=run.usd + run.moving_usd,
        moving_usd=run.moving_usd,
        finish_hours=run.now_hours,
        met=run.now_hours <= errand.deadline_hours + DONE_HOURS,
        changes=run.changes,
        preemptions=run.preemptions,
        hours=run.hours,
    )


class _Run:
    """One run in the markets of a recording."""

    def __init__(self, recording: Recording, errand: Errand) -> None:
        self.work_hours = errand.work_hours
        self.now_hours = self.usd = self.moving_usd = 0.0
        self.changes = self.preemptions = 0
        self.hours: dict[str, float] = {}
        self._recording, self._errand = recording, errand
        self._place = errand.start
        self._at = self._region = ""
        self._ready_hours = self._unsaved_hours = 0.0
        self._seen = {zone.name: Seen() for zone in recording.zones}
        for place in range(errand.start):
            self._watch(place)

    def step(self, policy: Policy) -> None:
        """From one look to the next."""
        errand = self._errand
        self._watch(self._place)
        markets = {market.name: market for market in self._markets()}
        if self._at and not markets[self._at].available:
            self.work_hours += self._unsaved_hours
            self.preemptions += 1
            self._leave()
        standing = Standing(
            work_hours=self.work_hours,
            left_hours=errand.deadline_hours - self.now_hours,
            at=self._at,
            ready_hours=self._ready_hours,
            look_hours=self._recording.step_hours,
            unsaved_hours=errand.save_hours,
        )
        chosen = policy(standing, tuple(markets.values())).market
        if chosen != self._at:
            self._leave()
            if chosen:
                self._go(markets[chosen])
        self._spend(markets[chosen].usd_per_hour if chosen else 0.0)
        self._place += 1

    def _watch(self, place: int) -> None:
        for zone in self._recording.zones:
            up = place < self._recording.steps and zone.up[place]
            self._seen[zone.name] = self._seen[zone.name].after(self._recording.step_hours, up=up)

    def _markets(self) -> Iterator[Market]:
        errand, recording = self._errand, self._recording
        last = min(self._place, recording.steps - 1)
        if last < self._place and not errand.on_demand_usd_per_hour:
            problem = f"ends with {self.work_hours:.1f} h of work left"
            raise SpecError(KEY, problem, "give it on-demand prices, or less to do")
        for zone in recording.zones:
            seen = self._seen[zone.name]
            yield Market(
                name=zone.name,
                spot=True,
                usd_per_hour=zone.usd_per_hour[last] * errand.machines,
                available=seen.up,
                changeover_hours=self._changeover_hours(region_of(zone.name)),
                moving_usd=self._moving_usd(region_of(zone.name)),
                hazard_per_hour=seen.hazard_per_hour,
                loss_hours=errand.save_hours / 2,
                uptime=seen.uptime,
            )
        for region, usd_per_hour in errand.on_demand_usd_per_hour.items():
            yield Market(
                name=f"{region} on-demand",
                spot=False,
                usd_per_hour=usd_per_hour * errand.machines,
                changeover_hours=errand.boot_hours + errand.move_hours,
                moving_usd=self._moving_usd(region),
            )

    def _changeover_hours(self, region: str) -> float:
        moves = self._region not in {"", region}
        return self._errand.boot_hours + self._errand.move_hours * moves

    def _moving_usd(self, region: str) -> float:
        price = self._errand.egress_usd_per_gb.get((self._region, region), 0.0)
        return price * self._errand.state_gb

    def _leave(self) -> None:
        self._at = ""
        self._ready_hours = self._unsaved_hours = 0.0

    def _go(self, market: Market) -> None:
        region = region_of(market.name)
        self._ready_hours = self._changeover_hours(region)
        self.moving_usd += self._moving_usd(region)
        self._at, self._region = market.name, region
        self.changes += 1

    def _spend(self, usd_per_hour: float) -> None:
        """The time until the next look, or until all is done."""
        hours, gained_hours = self._recording.step_hours, 0.0
        if self._at:
            hours = min(hours, self._ready_hours + self.work_hours)
            gained_hours = max(0.0, hours - self._ready_hours)
            self._ready_hours = max(0.0, self._ready_hours - hours)
        self.work_hours -= gained_hours
        if self._errand.save_hours:
            self._unsaved_hours = (self._unsaved_hours + gained_hours) % self._errand.save_hours
        self.usd += usd_per_hour * hours
        self.hours[self._at] = self.hours.get(self._at, 0.0) + hours
        self.now_hours += hours
