"""Meter: what a run has cost so far, and whether it may go on.

A promise about money has to hold for the worst that can happen until it can be kept: until the next
look, then until a checkpoint is committed and every machine is given back. So the meter asks what
all machines will have cost by then, at the most that they can cost, and stops the run while that is
still within the limit. What it thereby leaves unspent is the reserve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from tidemill.spec.placement import BudgetSpec

ACCOUNT = "purse.json"
"""File of a run that has its meter between two launches."""
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a machine costs.

    Attributes:
        usd_per_hour: Now.
        most_usd_per_hour: The most that it can become while it is kept: of a spot machine usually
            the price on demand.
        step_s: Seconds that its time is rounded up to.
    """

    usd_per_hour: float
    most_usd_per_hour: float
    step_s: float = 1.0


class Verdict(StrEnum):
    """Whether a run may go on."""

    go_on = "go on"
    money = "money"
    rate = "price by the hour"
    time = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """How long it takes until a limit is kept.

    Attributes:
        look_s: Until the next look, at most.
        save_s: Until a checkpoint is committed, at most.
        leave_s: Until the last machine is given back, at most.
    """

    look_s: float
    save_s: float
    leave_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.look_s + self.save_s + self.leave_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A machine that is being paid: since when, until when it is paid already, at what price."""

    since_s: float
    paid_until_s: float
    price: Price


class Meter:
    """Counts what machines cost.

    Args:
        budget: What may be spent.
        deadline_s: When the run has to be done, seconds since the epoch; infinite if it need not.
        spent_usd: What was spent before, by earlier launches of the run.
    """

    def __init__(
        self, budget: BudgetSpec, *, deadline_s: float = math.inf, spent_usd: float = 0.0
    ) -> None:
        self._budget = budget
        self._deadline_s = deadline_s
        self._spent_usd = spent_usd
        self._running: dict[str, _Running] = {}
        self._seen_s = 0.0

    @property
    def spent_usd(self) -> float:
        """Dollars so far, begun steps of billing included."""
        return self._spent_usd

    @property
    def usd_per_hour(self) -> float:
        """Price of all machines, as last seen."""
        return sum(machine.price.usd_per_hour for machine in self._running.values())

    def observe(self, now_s: float, machines: Mapping[str, Price]) -> None:
        """Take note of the machines there are.

        Time since the last look counts for machines that were there then, at the higher of their
        two prices; one that has gone counts until now, since nobody knows when it went.

        Args:
            now_s: Seconds since the epoch.
            machines: Price by name; those not among them are no longer paid.
        """
        for name in list(self._running):
            price = machines.get(name, self._running[name].price)
            self._pay(name, now_s, max(price.usd_per_hour, self._running[name].price.usd_per_hour))
            if name in machines:
                self._running[name] = replace(self._running[name], price=price)
            else:
                del self._running[name]
        for name in machines.keys() - self._running.keys():
            self._running[name] = _Running(since_s=now_s, paid_until_s=now_s, price=machines[name])
            self._pay(name, now_s, machines[name].usd_per_hour)
        self._seen_s = now_s

    def charge(self, usd: float) -> None:
        """Add what is paid besides machines: storage, transfer."""
        self._spent_usd += usd

    def forecast_usd(self, seconds: float) -> float:
        """Dollars by so many seconds from the last look, if nothing changes for the better."""
        until_s = self._seen_s + seconds
        return self._spent_usd + sum(
            _cost_usd(machine, until_s, machine.price.most_usd_per_hour)
            for machine in self._running.values()
        )

    def judge(self, horizon: Horizon) -> Verdict:
        """Whether the run may go on until the next look.

        Args:
            horizon: How long it takes to keep a limit.
        """
        budget = self._budget
        if budget.max_total_usd and self.forecast_usd(horizon.seconds) > budget.max_total_usd:
            return Verdict.money
        if self._seen_s + horizon.look_s + horizon.save_s > self._deadline_s:
            return Verdict.time
        if budget.max_usd_per_hour and self.usd_per_hour > budget.max_usd_per_hour:
            return Verdict.rate
        return Verdict.go_on

    def may_add(self, price: Price, horizon: Horizon) -> bool:
        """Whether another machine may be taken, and is of use before the run has to stop.

        Args:
            price: Of the machine.
            horizon: How long it takes to keep a limit.
        """
        budget = self._budget
        if budget.max_usd_per_hour and (
            self.usd_per_hour + price.usd_per_hour > budget.max_usd_per_hour
        ):
            return False
        if not budget.max_total_usd:
            return True
        extra = _Running(since_s=self._seen_s, paid_until_s=self._seen_s, price=price)
        until_s = self._seen_s + horizon.seconds
        added_usd = _cost_usd(extra, until_s, price.most_usd_per_hour)
        return self.forecast_usd(horizon.seconds) + added_usd <= budget.max_total_usd

    def resume(self, now_s: float, machines: Mapping[str, Price], leave_s: float) -> None:
        """Go on after nobody has looked for a while.

        Machines that are still there were paid all the time; others may have been, but no longer
        than they take to be given back.

        Args:
            now_s: Seconds since the epoch.
            machines: As for `observe`.
            leave_s: Seconds until a machine that is not used is given back, at most.
        """
        left_s = min(now_s, self._seen_s + leave_s)
        self.observe(left_s, {name: machines[name] for name in self._running.keys() & machines})
        self.observe(now_s, machines)

    def to_plain(self) -> dict[str, Any]:
        """As JSON, for the next launch."""
        machines = {name: asdict(machine) for name, machine in self._running.items()}
        return {"spent_usd": self._spent_usd, "at_s": self._seen_s, "machines": machines}

    @classmethod
    def from_plain(
        cls, budget: BudgetSpec, plain: Mapping[str, Any], *, deadline_s: float = math.inf
    ) -> Meter:
        """The meter of an earlier launch, which `resume` is to follow.

        Raises:
            KeyError, TypeError, ValueError: `plain` is not what `to_plain` made.
        """
        meter = cls(budget, deadline_s=deadline_s, spent_usd=float(plain["spent_usd"]))
        meter._seen_s = float(plain["at_s"])
        for name, machine in plain["machines"].items():
            meter._running[name] = _Running(**machine | {"price": Price(**machine["price"])})
        return meter

    def _pay(self, name: str, until_s: float, usd_per_hour: float) -> None:
        machine = self._running[name]
        self._spent_usd += _cost_usd(machine, until_s, usd_per_hour)
        paid_until_s = max(machine.paid_until_s, _billed_until_s(machine, until_s))
        self._running[name] = replace(machine, paid_until_s=paid_until_s)


def _billed_until_s(machine: _Running, until_s: float) -> float:
    """The end of the step of billing that a moment is in; the first is paid for at once."""
    step_s = machine.price.step_s
    steps = max(1, math.ceil(round((until_s - machine.since_s) / step_s, 6)))
    return machine.since_s + steps * step_s


def _cost_usd(machine: _Running, until_s: float, usd_per_hour: float) -> float:
    """What is still to pay for a machine until a moment."""
    more_s = max(0.0, _billed_until_s(machine, until_s) - machine.paid_until_s)
    return more_s / HOUR_S * usd_per_hour
