"""Second hand: prices that gpuhunt has collected, for providers that cannot be asked here.

gpuhunt publishes lists of prices every few hours. They are used where a provider has no key or does
not answer, and only if the package is installed (`pip install tidemill[gpuhunt]`), because that is
who asks a third party. A list is not the provider's word, so its offers do not count as live.

Source: https://github.com/dstackai/gpuhunt, 0.1.34.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from tidemill.plan.offers import Demand, Offer
from tidemill.providers.catalog import listed_offer, meets
from tidemill.spec.placement import Tier

if TYPE_CHECKING:
    import gpuhunt  # pyright: ignore[reportMissingTypeStubs]

NAMES = {"aws": "aws", "azure": "azure", "gcp": "gcp", "lambdalabs": "lambda"}
"""Ours, by theirs. RunPod's list does not say which machines are strangers', and other
marketplaces have none."""
TIERS = {"lambda": Tier.managed}
ZONE = re.compile(r"-[a-z]$")

log = logging.getLogger(__name__)


def second_hand_offers(demand: Demand) -> list[Offer]:
    """What of the collected lists meets a demand; nothing without the package or its lists."""
    if importlib.util.find_spec("gpuhunt") is None:
        return []
    try:
        return [offer for offer in _all() if meets(offer, demand)]
    except Exception as error:  # noqa: BLE001 - third parties fail in ways of their own
        log.info("gpuhunt has no lists: %s", error)
        return []


@cache
def _all() -> tuple[Offer, ...]:
    # An extra, and half a second.
    import gpuhunt  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL)
    lists = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
    lists.load()
    return tuple(_offers(lists))


def _offers(lists: gpuhunt.Catalog) -> Iterator[Offer]:
    for theirs in lists.catalog.keys() & NAMES.keys():
        version, provider = lists.catalog[theirs].version, NAMES[theirs]
        for item in lists.catalog[theirs].items:
            if not item.gpu_count or not item.gpu_name:
                continue
            row = {
                "provider": provider,
                "id": item.instance_name,
                "region": ZONE.sub("", item.location) if provider == "gcp" else item.location,
                "gpu": item.gpu_name,
                "gpus": float(item.gpu_count),
                "gpu_mem_gib": item.gpu_memory or 0.0,
                "usd_per_hour": item.price,
                "source": f"gpuhunt {theirs} {version}",
            }
            offer = listed_offer(
                row,
                spot=item.spot,
                tier=TIERS.get(provider, Tier.secure),
                fetched_at=_seconds(version),
            )
            if offer is not None:
                yield offer


def _seconds(version: str) -> float:
    """The day in the name of a version, `20261123-4`; 0 if there is none."""
    try:
        return datetime.strptime(version[:8], "%Y%m%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
