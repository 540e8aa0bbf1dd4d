"""Offers at random, small enough to try every mix of them."""

from __future__ import annotations

from itertools import product
from typing import Any

from hypothesis import strategies as st

from tidemill.plan.bill import Haul
from tidemill.plan.hazard import Recovery
from tidemill.plan.mixes import Limits
from tidemill.plan.offers import Offer, Rates
from tidemill.plan.placement import Choice, Machines, Question
from tidemill.spec.placement import Network, Tier

SPEED = {"H100-SXM5-80GB": 1.0, "A100-SXM4-80GB": 2.6, "L4": 9.0}
"""Hours that one GPU takes for a unit of work."""
WORK_H = 12.0


def make_offer(**wanted: Any) -> Offer:
    """An offer like many, but for what is `wanted`."""
    usual: dict[str, Any] = {
        "provider": "lambda",
        "id": "box",
        "region": "us-east-1",
        "country": "us",
        "gpu": "H100-SXM5-80GB",
        "gpus": 1,
        "gpu_mem_gib": 80.0,
        "usd_per_hour": 3.0,
        "tier": Tier.managed,
        "network": Network.private,
        "source": "test",
        "fetched_at": 0.0,
        "live": True,
    }
    return Offer(**usual | wanted)


rates = st.builds(
    Rates,
    disk_usd_per_gib_month=st.sampled_from([0.0, 0.1]),
    egress_usd_per_gib=st.sampled_from([0.0, 0.09]),
    ingress_usd_per_gib=st.sampled_from([0.0, 0.02]),
    boot_s=st.sampled_from([60.0, 600.0]),
    free_boot=st.booleans(),
    step_s=st.sampled_from([1.0, 3600.0]),
)
offers = st.builds(
    make_offer,
    provider=st.sampled_from(["aws", "vast"]),
    id=st.uuids().map(str),
    region=st.sampled_from(["here", "there"]),
    country=st.sampled_from(["us", "de", ""]),
    gpu=st.sampled_from(sorted(SPEED)),
    gpus=st.sampled_from([1, 2, 4]),
    usd_per_hour=st.integers(10, 900).map(lambda cents: cents / 100),
    spot=st.booleans(),
    tier=st.sampled_from(Tier),
    network=st.sampled_from(Network),
    reliability=st.sampled_from([None, 0.9, 0.999]),
    available=st.sampled_from([None, 0, 1, 2]),
    rates=rates,
    fetched_at=st.sampled_from([0.0, 1e9]),
    live=st.booleans(),
)
limits = st.builds(
    Limits,
    usd_per_hour=st.sampled_from([0.0, 5.0, 12.0]),
    usd=st.sampled_from([0.0, 20.0, 60.0]),
    hours=st.sampled_from([0.0, 4.0, 15.0]),
    machines=st.sampled_from([0, 1, 3]),
)
hauls = st.builds(
    Haul,
    dataset_gib=st.sampled_from([0.0, 40.0]),
    image_gib=st.just(8.0),
    disk_gib=st.just(50.0),
    checkpoint_gib=st.sampled_from([0.0, 6.0]),
    saves=st.integers(0, 20),
    home=st.sampled_from(["", "aws"]),
    home_egress_usd_per_gib=st.sampled_from([0.0, 0.09]),
)
recoveries = st.builds(
    Recovery,
    stall_s=st.sampled_from([2.0, 90.0]),
    redone_s=st.sampled_from([0.0, 600.0]),
    replaced=st.booleans(),
)


def hours(gpu: str, world: int, network: Network | None) -> float:
    """Hours of training: perfect scaling, slower over a slower network."""
    drag = {None: 1.0, Network.fabric: 1.05, Network.private: 1.2, Network.public: 2.0}
    return WORK_H * SPEED[gpu] * drag[network] / world


questions = st.builds(
    Question,
    worlds=st.sampled_from([(1, 2, 3, 4), (4,), (2, 3), (1,)]),
    hours=st.just(hours),
    haul=hauls,
    recovery=st.builds(
        lambda together, alone: lambda _hours, is_alone: alone if is_alone else together,
        recoveries,
        recoveries,
    ),
    network=st.sampled_from([Network.private, Network.public]),
    limits=limits,
)


def every_mix(pool: list[Offer], most: int) -> list[Machines]:
    """Every way to have at most so many GPUs."""
    ranges = [range(most // offer.gpus + 1) for offer in pool]
    found: list[Machines] = []
    for counts in product(*ranges):
        mix = tuple((o, n) for o, n in zip(pool, counts, strict=True) if n)
        if 0 < sum(o.gpus * n for o, n in mix) <= most:
            found.append(mix)
    return found


def is_allowed(choice: Choice, question: Question) -> bool:
    """Whether machines can train together and stay within every limit."""
    limit, offers_in = question.limits, [offer for offer, _ in choice.machines]
    count = sum(n for _, n in choice.machines)
    together = count == 1 or (
        len({(offer.provider, offer.region) for offer in offers_in}) == 1
        and all(offer.network.rank >= question.network.rank for offer in offers_in)
    )
    slack = 1 + 1e-9
    return (
        together
        and choice.world in question.worlds
        and all(offer.available is None or n <= offer.available for offer, n in choice.machines)
        and (not limit.machines or count <= limit.machines)
        and (not limit.usd_per_hour or choice.usd_per_hour <= limit.usd_per_hour * slack)
        and (not limit.usd or choice.bill.usd <= limit.usd * slack + 1e-5)
        and (not limit.hours or choice.elapsed_h <= limit.hours * slack)
    )
