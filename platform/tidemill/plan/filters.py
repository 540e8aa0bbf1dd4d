"""Filters: offers that a run must not or cannot use, each with the reason and what would change it.

They come before any ranking: nothing here knows what is cheap. The first filter that an offer fails
is the one that is told, the most serious first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tidemill.plan.gpus import Gpu, Market, all_gpus, matches
from tidemill.plan.offers import Offer, Refusal
from tidemill.plan.places import is_within
from tidemill.spec.placement import BudgetSpec, PlacementSpec, Spot, Tier
from tidemill.spec.training import PrecisionKind

STALE_S = 30 * 24 * 3600.0
"""Seconds after which a price is stale: marketplaces have moved by half in one month of 2026."""
DAY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a run asks of every machine.

    Attributes:
        placement: What a person chose.
        budget: What it may cost.
        tier: Least trust that run and dataset ask for.
        precision: Number format of the run.
        fits: Whether a GPU has the memory for it, in a group of whatever size.
        now_s: Seconds since the epoch.
    """

    placement: PlacementSpec
    budget: BudgetSpec
    tier: Tier
    precision: PrecisionKind
    fits: Callable[[Gpu], bool]
    now_s: float


def is_stale(offer: Offer, now_s: float) -> bool:
    """Whether a price is too old, or undated, to hold a limit by."""
    return not offer.live and now_s - offer.fetched_at > STALE_S


def sift(offers: Iterable[Offer], rule: Rule) -> tuple[list[Offer], list[Refusal]]:
    """Split offers into those that may be used, and why the others may not."""
    kept: list[Offer] = []
    refused: list[Refusal] = []
    for offer in offers:
        why = refuse(offer, rule)
        if why is None:
            kept.append(offer)
        else:
            refused.append(why)
    return kept, refused


def refuse(offer: Offer, rule: Rule) -> Refusal | None:
    """Why an offer may not be used; None if it may."""
    for test in (_owner, _country, _hardware, _terms, _price):
        found = test(offer, rule)
        if found is not None:
            reason, remedy = found
            return Refusal(subject=offer.name, reason=reason, remedy=remedy)
    return None


Why = tuple[str, str] | None


def _owner(offer: Offer, rule: Rule) -> Why:
    chosen = rule.placement
    if offer.tier.rank < rule.tier.rank:
        return f"tier {offer.tier}, and {rule.tier} is asked for", "placement.tier, data.tier"
    if chosen.providers and offer.provider not in chosen.providers:
        return "not among placement.providers", f"add {offer.provider} to placement.providers"
    return None


def _country(offer: Offer, rule: Rule) -> Why:
    chosen = rule.placement
    if not is_within(offer.country, chosen.countries):
        where = offer.country or "an unknown country"
        return f"in {where}, outside placement.countries", "placement.countries"
    if chosen.regions and not any(offer.region.startswith(start) for start in chosen.regions):
        where = offer.region or "an unknown region"
        return f"in {where}, outside placement.regions", "placement.regions"
    return None


def _hardware(offer: Offer, rule: Rule) -> Why:
    chosen, gpu = rule.placement, all_gpus().get(offer.gpu)
    if not matches(offer.gpu, chosen.gpus):
        return f"{offer.gpu} is not among placement.gpus", "placement.gpus"
    if gpu is None:
        return f"{offer.gpu} is not known, so neither is what it can do", ""
    if gpu.market is Market.consumer and not chosen.consumer:
        return f"{gpu.name} is a consumer card", "placement.consumer=true"
    return _ability(gpu, rule)


def _ability(gpu: Gpu, rule: Rule) -> Why:
    least = rule.placement.min_capability
    if not gpu.capability:
        return f"{gpu.name} has no CUDA, which the torch that workers install is built for", ""
    if not gpu.tflops[rule.precision]:
        return f"{gpu.name} has no {rule.precision} units", "precision=fp16 or precision=fp32"
    if gpu.capability < least:
        key = "placement.min_capability"
        return f"{gpu.name} has compute capability {gpu.capability:g}, below {key}={least:g}", key
    if not rule.fits(gpu):
        remedy = "memory=recompute, strategy=fsdp2 or a smaller batch.micro_size"
        return f"the run does not fit into {gpu.memory_gib:g} GiB", remedy
    return None


def _terms(offer: Offer, rule: Rule) -> Why:
    chosen = rule.placement
    if offer.spot and chosen.spot is Spot.never:
        return "may be taken back", "placement.spot=prefer"
    if not offer.spot and chosen.spot is Spot.only:
        return "is no spot machine", "placement.spot=prefer"
    if chosen.min_reliability:
        key = "placement.min_reliability"
        least = f"{key}={chosen.min_reliability:g}"
        if offer.reliability is None and offer.tier is Tier.community:
            return "states no reliability", "placement.min_reliability=0"
        if offer.reliability is not None and offer.reliability < chosen.min_reliability:
            return f"was up {offer.reliability:.1%} of the time, below {least}", key
    if offer.available == 0:
        return "none left", ""
    return None


def _price(offer: Offer, rule: Rule) -> Why:
    budget = rule.budget
    if budget.limited and not budget.allow_stale_prices and is_stale(offer, rule.now_s):
        age = "undated"
        if offer.fetched_at:
            age = f"{(rule.now_s - offer.fetched_at) / DAY_S:.0f} days old"
        return f"its price is {age}, too old to hold a limit by", "budget.allow_stale_prices=true"
    if budget.max_usd_per_gpu_hour and offer.usd_per_gpu_hour > budget.max_usd_per_gpu_hour:
        most = f"budget.max_usd_per_gpu_hour={budget.max_usd_per_gpu_hour:g}"
        return f"${offer.usd_per_gpu_hour:.2f} a GPU and hour, above {most}", "raise it"
    if budget.max_usd_per_hour and offer.usd_per_hour > budget.max_usd_per_hour:
        most = f"budget.max_usd_per_hour={budget.max_usd_per_hour:g}"
        return f"${offer.usd_per_hour:.2f} an hour, above {most}", "raise it"
    return None
