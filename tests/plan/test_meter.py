"""The meter: never past the cap, little left over, and a checkpoint before the stop."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.plan.meter import Horizon, Meter, Price, Verdict
from tidemill.spec.placement import BudgetSpec

HORIZON = Horizon(look_s=60.0, save_s=60.0, leave_s=30.0)


@dataclass
class Ending:
    """How a simulated run ended: what the provider charged, and what the run had saved."""

    charged_usd: float
    cap_usd: float
    verdict: Verdict
    stopped_at_s: float
    last_commit_s: float
    peak_usd_per_hour: float


class Bank:
    """The provider's own books, to the second, apart from the meter's."""

    def __init__(self) -> None:
        self.usd = 0.0
        self.paid_until: dict[str, float] = {}

    def run(self, machines: dict[str, Price], to_s: float, since: dict[str, float]) -> None:
        for name, price in machines.items():
            step_s = price.step_s
            steps = math.ceil(round((to_s - since[name]) / step_s, 6))
            until_s = since[name] + steps * step_s
            begun_s = self.paid_until.get(name, since[name])
            if until_s > begun_s:
                self.usd += (until_s - begun_s) / 3600 * price.usd_per_hour
                self.paid_until[name] = until_s


def shake(machines: dict[str, Price], price: Callable[[], Price], dice: random.Random) -> None:
    """Some machines go, and some prices move."""
    for name in list(machines):
        if dice.random() < 0.001:
            del machines[name]
        elif dice.random() < 0.05:
            machines[name] = price()


def live(seed: int) -> Ending:
    """One run on spot machines whose prices move and which come and go, until it has to stop."""
    dice = random.Random(seed)
    step_s = dice.choice([1.0, 1.0, 60.0])
    full = dice.uniform(1.0, 12.0)
    count = dice.randint(1, 4)
    hours = dice.uniform(5.0, 12.0)
    cap = full * 0.5 * count * hours
    meter = Meter(BudgetSpec(max_total_usd=cap))
    bank, now_s, number = Bank(), 0.0, 0
    machines: dict[str, Price] = {}
    since: dict[str, float] = {}

    def price() -> Price:
        return Price(
            usd_per_hour=full * dice.uniform(0.2, 1.0), most_usd_per_hour=full, step_s=step_s
        )

    peak = last_commit_s = 0.0
    while True:
        while len(machines) < count and dice.random() < 0.5:
            offered = price()
            if not meter.may_add(offered, HORIZON):
                break
            number += 1
            machines[f"m{number}"], since[f"m{number}"] = offered, now_s
            meter.observe(now_s, machines)
        meter.observe(now_s, machines)
        peak = max(peak, meter.usd_per_hour)
        verdict = meter.judge(HORIZON)
        if verdict is not Verdict.go_on:
            break
        later_s = now_s + dice.uniform(0.2, 1.0) * HORIZON.look_s
        bank.run(machines, later_s, since)
        now_s = later_s
        if now_s - last_commit_s > 1800:
            last_commit_s = now_s
        shake(machines, price, dice)
    # Saved first, then given back one by one, at prices that have meanwhile gone all the way up.
    dear = {
        name: Price(usd_per_hour=full, most_usd_per_hour=full, step_s=step_s) for name in machines
    }
    saved_s = now_s + dice.uniform(0.3, 1.0) * HORIZON.save_s
    bank.run(dear, saved_s, since)
    for name in list(dear):
        gone_s = saved_s + dice.uniform(0.0, 1.0) * HORIZON.leave_s
        bank.run({name: dear[name]}, gone_s, since)
    return Ending(bank.usd, cap, verdict, now_s, saved_s, peak)


def test_five_hundred_runs_stay_below_their_cap_and_leave_little() -> None:
    endings = [live(seed) for seed in range(500)]
    assert all(ending.charged_usd <= ending.cap_usd for ending in endings)
    left = sorted(1 - ending.charged_usd / ending.cap_usd for ending in endings)
    assert left[-1] <= 0.03
    assert all(ending.verdict is Verdict.money for ending in endings)
    assert all(ending.last_commit_s > ending.stopped_at_s for ending in endings)


def test_the_meter_never_says_less_than_the_bank() -> None:
    for seed in range(50):
        dice = random.Random(seed)
        bank, meter = Bank(), Meter(BudgetSpec())
        machines = {
            f"m{n}": Price(
                usd_per_hour=dice.uniform(1, 9),
                most_usd_per_hour=9,
                step_s=dice.choice([1.0, 60.0, 3600.0]),
            )
            for n in range(4)
        }
        since = dict.fromkeys(machines, 0.0)
        now_s = 0.0
        meter.observe(now_s, machines)
        for _ in range(300):
            later_s = now_s + dice.uniform(1, 60)
            bank.run(machines, later_s, since)
            now_s = later_s
            meter.observe(now_s, machines)
        assert bank.usd <= meter.spent_usd + 1e-9
        assert meter.spent_usd <= bank.usd * 1.001 + 0.01


def test_by_hand() -> None:
    meter = Meter(BudgetSpec(max_total_usd=100.0))
    two = {name: Price(usd_per_hour=10.0, most_usd_per_hour=20.0) for name in "ab"}
    meter.observe(1000.0, two)
    meter.observe(1000.0 + 3600, two)
    assert meter.spent_usd == pytest.approx(20.0, abs=0.01)
    assert meter.usd_per_hour == 20.0
    assert meter.forecast_usd(3600) == pytest.approx(60.0, abs=0.02)
    meter.observe(1000.0 + 7200, {"a": two["a"]})
    assert meter.spent_usd == pytest.approx(40.0, abs=0.01)
    assert meter.usd_per_hour == 10.0
    meter.charge(5.0)
    assert meter.spent_usd == pytest.approx(45.0, abs=0.01)


def test_a_begun_hour_is_a_paid_hour() -> None:
    meter = Meter(BudgetSpec())
    hourly = {"a": Price(usd_per_hour=6.0, most_usd_per_hour=6.0, step_s=3600.0)}
    meter.observe(0.0, hourly)
    assert meter.spent_usd == 6.0
    meter.observe(3599.0, hourly)
    assert meter.spent_usd == 6.0
    meter.observe(3601.0, hourly)
    assert meter.spent_usd == 12.0


def test_time_and_rate_end_it_too() -> None:
    one = {"a": Price(usd_per_hour=10.0, most_usd_per_hour=10.0)}
    late = Meter(BudgetSpec(), deadline_s=1000.0)
    late.observe(800.0, one)
    assert late.judge(HORIZON) is Verdict.go_on
    late.observe(935.0, one)
    assert late.judge(HORIZON) is Verdict.time
    dear = Meter(BudgetSpec(max_usd_per_hour=9.0))
    dear.observe(0.0, one)
    assert dear.judge(HORIZON) is Verdict.rate
    free = Meter(BudgetSpec())
    free.observe(0.0, one)
    assert free.judge(HORIZON) is Verdict.go_on


def test_a_machine_that_cannot_be_paid_is_not_taken() -> None:
    meter = Meter(BudgetSpec(max_usd_per_hour=15.0, max_total_usd=1.0))
    price = Price(usd_per_hour=10.0, most_usd_per_hour=10.0)
    meter.observe(0.0, {"a": price})
    assert not meter.may_add(price, HORIZON)
    assert meter.may_add(Price(usd_per_hour=4.0, most_usd_per_hour=4.0), HORIZON)
    hourly = Price(usd_per_hour=4.0, most_usd_per_hour=4.0, step_s=3600.0)
    assert not meter.may_add(hourly, HORIZON)


@given(st.floats(0, 1000), st.floats(0, 100))
def test_what_was_spent_before_counts(before: float, more: float) -> None:
    meter = Meter(BudgetSpec(), spent_usd=before)
    meter.charge(more)
    plain = json.loads(json.dumps(meter.to_plain()))
    assert Meter.from_plain(BudgetSpec(), plain).spent_usd == before + more


def test_nobody_looked_for_a_while() -> None:
    price = Price(usd_per_hour=3600.0, most_usd_per_hour=7200.0)  # a dollar a second
    before = Meter(BudgetSpec())
    before.observe(0.0, {"stays": price, "goes": price})
    before.observe(10.0, {"stays": price, "goes": price})
    assert before.spent_usd == 20.0
    after = Meter.from_plain(BudgetSpec(), json.loads(json.dumps(before.to_plain())))
    after.resume(110.0, {"stays": price, "comes": price}, leave_s=30.0)
    assert after.spent_usd == 20.0 + 100.0 + 30.0 + 1.0
    assert after.usd_per_hour == 7200.0
    again = Meter.from_plain(BudgetSpec(), after.to_plain())
    again.resume(111.0, {}, leave_s=30.0)
    assert again.spent_usd == 151.0 + 1.0, "the newcomer's first second was paid before"


def test_what_is_no_meter_is_refused() -> None:
    for plain in ({}, {"spent_usd": "a", "at_s": 0, "machines": {}}, {"spent_usd": 1, "at_s": 0}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            Meter.from_plain(BudgetSpec(), plain)
