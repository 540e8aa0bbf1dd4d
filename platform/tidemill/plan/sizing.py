"""Sizing: whether more workers are worth a restart, and how runs share a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MARGIN = 2.0
"""How many times over a change must earn what it costs; both are estimates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one run may have of a cluster.

    Attributes:
        least: Fewest workers it goes on with.
        most: Most it has use for.
        weight: Its share beside others, in proportion to theirs.
    """

    least: int
    most: int
    weight: float = 1.0


def worth_growing(
    remaining_steps: int,
    step_s: float,
    share_now: int,
    share_then: int,
    restart_s: float,
) -> bool:
    """Whether a larger group earns what the change to it costs.

    Args:
        remaining_steps: Steps left.
        step_s: Seconds of one now.
        share_now: Samples of a step that the busiest rank takes now.
        share_then: Samples that it would take.
        restart_s: Seconds that nobody trains because of the change.
    """
    gain_s = remaining_steps * step_s * (1 - share_then / share_now)
    return gain_s > MARGIN * restart_s


def fair_shares(slots: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """Deal the workers that a cluster has room for to the runs on it.

    The least that a run goes on with comes first, to the oldest first; the rest goes one by one to
    whoever has least for its weight.

    Args:
        slots: Workers there is room for.
        claims: By name of the run, the oldest first.

    Returns:
        Workers by name of the run; 0 for one that has to wait.
    """
    shares = dict.fromkeys(claims, 0)
    left = slots
    for name, claim in claims.items():
        if claim.least <= left:
            shares[name] = claim.least
            left -= claim.least
    while left:
        hungry = [name for name, claim in claims.items() if 0 < shares[name] < claim.most]
        if not hungry:
            break
        poorest = min(hungry, key=lambda name: shares[name] / claims[name].weight)
        shares[poorest] += 1
        left -= 1
    return shares
