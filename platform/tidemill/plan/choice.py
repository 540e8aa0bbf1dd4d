"""Choice: spot here, spot there, on-demand or waiting, for a run that may have a deadline.

A function of what is known at one moment, asked at every look and after every change; it remembers
nothing. On-demand is a net that is always stretched: spot and waiting are for as long as on-demand
could still save the deadline after the worst that can happen until the next look. Above the net it
is all price: an hour of progress is worth what it will cost in the markets that the time left makes
the run depend on, and the best market is the one that gains most by that measure.

Sources: Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines", NSDI 2024:
the net, progress spread evenly over the time left, and leaving on-demand only well above the net.
"SkyNomad: On Using Multi-Region Spot Instances to Minimize AI Batch Job Cost", NSDI 2027: markets
compared by the value of progress less price, over the lifetime that was seen there so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

USUAL_HOURS = 4.0
"""Hours that a spot market is taken to last before it was seen; weighs as that many hours."""
USUAL_UPTIME = 0.5
"""Share of time that it is taken to have machines before it was seen."""
MEMORY_HOURS = 48.0
"""Hours after which what was seen weighs 1/e."""
KEEP = 0.05
"""Share of the worth of progress by which another market must be better for a run to move."""
RESERVE = 0.15
"""Share of the time left that is not counted on, since markets often fail together."""
SLACKEST = 0.1
"""Least progress per hour to plan for: nobody waits ten times as long as the work takes."""
RETURN = 2.0
"""Changeovers to on-demand that must fit above the net before on-demand is left."""
ROUNDING = 1e-9
"""Hours, and preemptions an hour, that are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a spot market so far; what is long ago weighs less.

    Attributes:
        hours: For which it was watched.
        up_hours: For which it had machines.
        ends: How often it ceased to have them.
        up: Whether it had them when last seen.
    """

    hours: float = 0.0
    up_hours: float = 0.0
    ends: float = 0.0
    up: bool = False

    def after(self, hours: float, *, up: bool) -> Seen:
        """The same after another look, `hours` after the last one."""
        kept = math.exp(-hours / MEMORY_HOURS)
        return Seen(
            hours=self.hours * kept + hours,
            up_hours=self.up_hours * kept + hours * up,
            ends=self.ends * kept + (self.up and not up),
            up=up,
        )

    @property
    def hazard_per_hour(self) -> float:
        """Preemptions to expect per hour there."""
        return (self.ends + 1.0) / (self.up_hours + USUAL_HOURS)

    @property
    def uptime(self) -> float:
        """Share of time for which it can be expected to have machines."""
        return (self.up_hours + USUAL_UPTIME * USUAL_HOURS) / (self.hours + USUAL_HOURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Somewhere the fleet of a run could be rented.

    Attributes:
        name: Told apart by it, and shown to people.
        spot: Whether its machines can be taken back.
        usd_per_hour: Of the whole fleet, now.
        available: Whether the fleet can be had now, or is held by the run.
        changeover_hours: From choosing it until the run makes progress there: boot, download,
            restore. Of on-demand, the most that it can take from any place.
        moving_usd: Paid once on going there: checkpoint and dataset leave another region.
        hazard_per_hour: Preemptions to expect per hour; a deadline counts on none of on-demand.
        loss_hours: Hours of progress that one of them is expected to take.
        uptime: Share of time for which the fleet can be had.
    """

    name: str
    spot: bool
    usd_per_hour: float
    available: bool = True
    changeover_hours: float
    moving_usd: float = 0.0
    hazard_per_hour: float = 0.0
    loss_hours: float = 0.0
    uptime: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run stands.

    Attributes:
        work_hours: Left to do, at full speed.
        left_hours: Until the deadline; infinite if there is none.
        at: Name of the market it is in; empty if in none.
        ready_hours: Until it makes progress there.
        look_hours: At most, until a choice is asked for again.
        unsaved_hours: Of progress, at most, that one preemption can take: between two checkpoints.
    """

    work_hours: float
    left_hours: float = math.inf
    at: str = ""
    ready_hours: float = 0.0
    look_hours: float
    unsaved_hours: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to do until the next look.

    Attributes:
        market: Name of the market to be in; empty to wait.
        reason: One sentence for a person.
        late: Whether nothing that can be had now is sure to meet the deadline.
        finish_hours: Until it is done at the earliest if that is sure, or hoped for if `late`.
    """

    market: str
    reason: str
    late: bool = False
    finish_hours: float = math.inf


def progress_price(run: Standing, market: Market) -> float:
    """Dollars that an hour of progress costs in a market that a run goes to.

    All that is paid while it can expect to stay, and for going there, by what is left of that time
    after the changeover and the loss at the end; infinite if nothing is.

    Args:
        run: What there is to do.
        market: Where it would go.
    """
    stay_hours, gained_hours = _stay(run, market, market.changeover_hours)
    paid_usd = market.usd_per_hour * stay_hours + market.moving_usd
    return paid_usd / gained_hours if gained_hours > 0 else math.inf


def choose(run: Standing, markets: Sequence[Market]) -> Choice:
    """Choose where a run goes on.

    A deadline that on-demand can meet is met, whatever becomes of spot, as long as the quickest
    on-demand market can still be had when it is chosen and takes no longer than it says.

    Args:
        run: Where it stands.
        markets: All there are, those without machines now included.
    """
    if run.work_hours <= 0:
        return Choice(market="", reason="nothing is left to do", finish_hours=0.0)
    there = [market for market in markets if market.available]
    firm = [market for market in there if not market.spot]
    sure = [m for m in firm if _finish_hours(run, m) <= run.left_hours + ROUNDING]
    if firm and not sure:
        return _hurry(run, [m for m in there if not m.spot or m.name == run.at])
    lead_hours = min((market.changeover_hours for market in firm), default=0.0)
    risk_hours = run.look_hours + run.unsaved_hours
    spare_hours = run.left_hours - run.work_hours - lead_hours if firm else math.inf
    if any(market.name == run.at for market in firm):
        spare_hours -= RETURN * lead_hours
    done_hours = min((_finish_hours(run, market) for market in sure), default=math.inf)
    allowed = [m for m in there if m.spot and spare_hours >= risk_hours] + sure
    if not allowed:
        return Choice(market="", reason="no machines can be had now", finish_hours=done_hours)
    usable_hours = (run.left_hours - lead_hours - risk_hours) * (1 - RESERVE)
    worth = _worth(run, [*(m for m in markets if m.spot), *sure], usable_hours)
    best = max(allowed, key=lambda market: (_gain_per_hour(run, market, worth), market.name))
    reason = f"{best.name} gives the most for its {best.usd_per_hour:.2f} usd/h, losses included"
    if spare_hours < risk_hours:
        reason = f"{best.name}, since only on-demand is sure to meet the deadline from here"
    elif _gain_per_hour(run, best, worth) < -KEEP * worth:
        reason = (
            f"waits for an hour of progress at {worth:.4g} usd, to be expected before it is late"
        )
        return Choice(market="", reason=reason, finish_hours=done_hours)
    return Choice(market=best.name, reason=reason, finish_hours=done_hours)


def _hurry(run: Standing, markets: Sequence[Market]) -> Choice:
    """What is done soonest, of on-demand that is too late and where the run is already."""
    firm_hours = min(_finish_hours(run, market) for market in markets if not market.spot)
    hours, name = min((_finish_hours(run, market), market.name) for market in markets)
    reason = f"even on-demand is {firm_hours - run.left_hours:.1f} h too late; "
    reason += f"{name} can be done in {hours:.1f} h, which is the earliest"
    return Choice(market=name, reason=reason, late=True, finish_hours=hours)


def _worth(run: Standing, markets: Iterable[Market], usable_hours: float) -> float:
    """Dollars that an hour of progress is worth: its price in the dearest market that is needed.

    The cheapest markets that together are there often enough to finish in time are needed. Where
    on-demand is one, that is the straight line of "Can't Be Late", drawn anew at every look.
    """
    pace = max(SLACKEST, run.work_hours / usable_hours) if usable_hours > 0 else math.inf
    without, worth = 1.0, 0.0
    priced = sorted((progress_price(run, market), market.name, market) for market in markets)
    for price, _, market in priced:
        if math.isinf(price):
            break
        worth = price
        stay_hours, gained_hours = _stay(run, market, market.changeover_hours)
        without *= 1 - market.uptime * gained_hours / stay_hours
        if 1 - without >= pace or not market.spot:
            break
    return worth


def _gain_per_hour(run: Standing, market: Market, worth: float) -> float:
    """Dollars that progress in a market is worth above what is paid, per hour of being there."""
    here = market.name == run.at
    lead_hours = run.ready_hours if here else market.changeover_hours
    stay_hours, gained_hours = _stay(run, market, lead_hours)
    gain_usd = worth * gained_hours - (0.0 if here else market.moving_usd)
    return gain_usd / stay_hours - market.usd_per_hour + (KEEP * worth if here else 0.0)


def _stay(run: Standing, market: Market, lead_hours: float) -> tuple[float, float]:
    """Hours that a run can expect to stay in a market, and how many of them are progress."""
    hazard = market.hazard_per_hour
    if hazard < ROUNDING:
        return lead_hours + run.work_hours, run.work_hours
    early, later = -math.expm1(-hazard * lead_hours), -math.expm1(-hazard * run.work_hours)
    later *= 1 - early
    return (early + later) / hazard, later * (1 / hazard - market.loss_hours)


def _finish_hours(run: Standing, market: Market) -> float:
    """Hours until a run that stays in a market is done; to be expected, if it is spot."""
    lead_hours = run.ready_hours if market.name == run.at else market.changeover_hours
    again = market.hazard_per_hour * (market.loss_hours + market.changeover_hours)
    return lead_hours + run.work_hours * (1 + again * market.spot)
