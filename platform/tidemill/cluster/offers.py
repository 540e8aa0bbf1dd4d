"""Offers: what the market has for a person who looks, with what it would really cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tidemill.plan.bill import MICRO, Haul, Work, make_bill
from tidemill.plan.filters import Rule, sift
from tidemill.plan.hazard import Recovery
from tidemill.plan.offers import Demand, Offer, Refusal
from tidemill.providers.base import UnusableError
from tidemill.providers.market import Market, ask_market, known_providers, shipped_market
from tidemill.report.market import (
    OfferRow,
    OffersPage,
    ProviderRow,
    ProvidersPage,
    RefusalRow,
)
from tidemill.spec.fleet import FleetAction, FleetSpec
from tidemill.spec.placement import BudgetSpec, PlacementSpec, Spot
from tidemill.spec.training import PrecisionKind

RECOVERY = Recovery(stall_s=2.0, redone_s=60.0)
"""What a lost machine costs where nothing is known of the run."""


def act(spec: FleetSpec, environment: Mapping[str, str]) -> OffersPage | ProvidersPage:
    """Do what is asked.

    Args:
        spec: It.
        environment: Has the providers' keys.
    """
    if spec.action is FleetAction.providers:
        return look_at_providers(environment)
    return look_for_offers(spec, environment, now_s=time.time())


def cache_of(environment: Mapping[str, str]) -> Path:
    """Where answers of providers are kept."""
    chosen = environment.get("XDG_CACHE_HOME")
    home = Path(chosen) if chosen else Path.home() / ".cache"
    return home / "tidemill" / "offers"


def look_for_offers(spec: FleetSpec, environment: Mapping[str, str], *, now_s: float) -> OffersPage:
    """Machines that are what a person wants, cheapest with all that comes with them first."""
    demand = Demand(
        gpus=(spec.gpu,) if spec.gpu else (),
        count=spec.gpus,
        spot={Spot.only: True, Spot.never: False}.get(spec.spot),
        disk_gib=spec.disk_gib,
    )
    market = _market(spec, demand, environment)
    rule = Rule(
        placement=PlacementSpec(
            tier=spec.tier,
            spot=spec.spot,
            providers=spec.providers,
            gpus=[spec.gpu] if spec.gpu else [],
            consumer=spec.consumer,
            regions=spec.regions,
            countries=spec.countries,
            min_reliability=spec.min_reliability,
        ),
        budget=BudgetSpec(max_usd_per_gpu_hour=spec.max_usd_per_gpu_hour, allow_stale_prices=True),
        tier=spec.tier,
        precision=PrecisionKind.fp32,
        fits=lambda _: True,
        now_s=now_s,
    )
    kept, refused = sift(market.offers, rule)
    slow = [offer for offer in kept if offer.network.rank < spec.network.rank]
    refused += [
        Refusal(subject=o.name, reason=f"its network is {o.network}", remedy="network=public")
        for o in slow
    ]
    rows = sorted(
        (make_row(offer, spec, now_s) for offer in kept if offer not in slow),
        key=lambda row: (row.effective_usd_per_gpu_hour, row.usd_per_gpu_hour, row.id),
    )
    shown = rows[: spec.top] if spec.top else rows
    return OffersPage(
        asked=_asked(spec),
        offers=tuple(shown),
        more=len(rows) - len(shown),
        skipped=told(market.refusals),
        refused=told(refused),
    )


def make_row(offer: Offer, spec: FleetSpec, now_s: float) -> OfferRow:
    """An offer with its effective price: everything that some hours there cost, by GPU and hour."""
    haul = Haul(dataset_gib=spec.data_gib, image_gib=spec.image_gib, disk_gib=spec.disk_gib)
    work = Work(world=offer.gpus, hours=spec.hours, haul=haul, recovery=RECOVERY)
    bill = make_bill([(offer, 1)], work)
    return OfferRow(
        provider=offer.provider,
        id=offer.id,
        region=offer.region,
        country=offer.country,
        gpu=offer.gpu,
        gpus=offer.gpus,
        gpu_mem_gib=offer.gpu_mem_gib,
        spot=offer.spot,
        usd_per_hour=offer.usd_per_hour,
        usd_per_gpu_hour=offer.usd_per_gpu_hour,
        effective_usd_per_gpu_hour=bill.usd / (spec.hours * offer.gpus),
        terms_usd={name: micro / MICRO for name, micro in bill.terms.items()},
        tier=offer.tier.value,
        reliability=offer.reliability,
        network=offer.network.value,
        available=offer.available,
        age_s=now_s - offer.fetched_at if offer.fetched_at else None,
        live=offer.live,
        source=offer.source,
    )


def look_at_providers(environment: Mapping[str, str]) -> ProvidersPage:
    """Everybody who is known, and whether they can be asked here."""
    rows: list[ProviderRow] = []
    for name, load in known_providers().items():
        provider, reason, remedy = load(), "", ""
        try:
            provider.connect(environment).close()
        except UnusableError as error:
            reason, remedy = error.reason, error.remedy
        able = provider.capabilities
        rows.append(
            ProviderRow(
                name=name,
                usable=not reason,
                reason=reason,
                remedy=remedy,
                kind=able.kind.value,
                status=able.status.value,
                spot=able.spot,
                notice_s=able.notice_s,
                private_network=able.private_network,
                billing_step_s=able.billing_step_s,
                evidence=able.evidence,
                evidence_date=able.evidence_date,
                note=able.note,
            )
        )
    return ProvidersPage(providers=tuple(rows))


def _market(spec: FleetSpec, demand: Demand, environment: Mapping[str, str]) -> Market:
    if not spec.live:
        return shipped_market(demand, spec.providers)
    cache = cache_of(environment)
    return ask_market(demand, environment, wanted=spec.providers, cache=cache)


def _asked(spec: FleetSpec) -> str:
    kind = f"{spec.gpu or 'any GPU'}, {spec.gpus} or more in a machine"
    return f"{kind}, {spec.hours:g} hours" + (f", {spec.data_gib:g} GiB" if spec.data_gib else "")


def told(refusals: Iterable[Refusal]) -> tuple[RefusalRow, ...]:
    """Refusals as rows of a page."""
    return tuple(
        RefusalRow(subject=why.subject, reason=why.reason, remedy=why.remedy) for why in refusals
    )
