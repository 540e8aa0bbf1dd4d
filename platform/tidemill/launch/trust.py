"""Trust: on a cluster, a run that asks for a tier is only on nodes that say they are of it.

A node says so in its label `tidemill.io/tier`, which whoever starts it knows. One that says nothing
may be a stranger's, so it is not used. A Ray of the run's own is on the machine of the person who
starts it, and asked for nothing.
"""

from __future__ import annotations

from dataclasses import replace

from tidemill.spec.placement import Tier
from tidemill.spec.run import RunSpec

TIER = "tidemill.io/tier"


def tier_of(spec: RunSpec) -> Tier:
    """The least trust that a run and its dataset ask for."""
    return max(spec.placement.tier, spec.data.tier, key=lambda tier: tier.rank)


def among_trusted(spec: RunSpec) -> RunSpec:
    """The run, with the condition on nodes that its tier is."""
    least = tier_of(spec)
    if least is Tier.community:
        return spec
    allowed = ",".join(tier.value for tier in Tier if tier.rank >= least.rank)
    labels = {**spec.scale.labels, TIER: f"in({allowed})"}
    return replace(spec, scale=replace(spec.scale, labels=labels))
