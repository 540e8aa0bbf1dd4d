"""Decision: what to rent now for a run with a deadline, among the machines that a plan found."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.plan.bill import MICRO, waiting_s
from tidemill.plan.choice import Choice as Decision
from tidemill.plan.choice import Market, Standing, choose
from tidemill.plan.forecast import Forecaster
from tidemill.plan.hazard import HOUR_S, losses_per_hour
from tidemill.plan.placement import Choice

LOOK_HOURS = 0.25
"""Hours between two looks at the market that are taken to be usual."""


def decide(forecaster: Forecaster, choices: Sequence[Choice]) -> Decision:
    """Choose between spot, on-demand and waiting, as of now.

    Work is told in hours of the fastest machines; what others take longer counts as part of going
    there, so that they are paid for, and are done, when they would be.

    Args:
        forecaster: Knows the run.
        choices: What could be rented; at least one.
    """
    fastest = min(choice.hours for choice in choices)
    unsaved_s = max(forecaster.recovery(c.hours, alone=True).redone_s for c in choices) * 2
    run = Standing(
        work_hours=fastest,
        left_hours=forecaster.spec.deadline_s / HOUR_S,
        look_hours=LOOK_HOURS,
        unsaved_hours=min(unsaved_s / HOUR_S, fastest),
    )
    return choose(run, [_market(forecaster, choice, fastest) for choice in choices])


def _market(forecaster: Forecaster, choice: Choice, fastest: float) -> Market:
    alone = sum(count for _, count in choice.machines) == 1
    recovery = forecaster.recovery(choice.hours, alone)
    wait_hours = max(waiting_s(offer, forecaster.haul()) for offer, _ in choice.machines) / HOUR_S
    return Market(
        name=choice.name,
        spot=any(offer.spot for offer, _ in choice.machines),
        usd_per_hour=choice.usd_per_hour,
        changeover_hours=wait_hours + choice.hours - fastest,
        moving_usd=choice.bill.transfer_in / MICRO,
        hazard_per_hour=sum(losses_per_hour(offer) * n for offer, n in choice.machines),
        loss_hours=(recovery.stall_s + recovery.redone_s) / HOUR_S * fastest / choice.hours,
    )
