"""The catalogue: every row can be believed, says where it is from, and becomes an offer."""

from __future__ import annotations

import csv
from collections import Counter
from datetime import date
from importlib import resources

from tidemill.plan.gpus import all_gpus
from tidemill.plan.offers import Demand
from tidemill.providers.catalog import shipped_offers
from tidemill.spec.placement import Network, Tier

CLOUDS = {"aws", "gcp", "azure"}


def test_every_row_becomes_an_offer_with_a_source() -> None:
    table = resources.files("tidemill.providers").joinpath("offers.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    offers = shipped_offers(Demand())
    assert len(offers) == len(rows) > 300
    for row in rows:
        assert row["source"]
        assert not row["date"] or date.fromisoformat(row["date"]) < date(2026, 12, 1)
    for offer in offers:
        assert offer.gpu in all_gpus()
        assert 0.01 < offer.usd_per_gpu_hour < 20
        assert not offer.live
        assert (offer.tier is Tier.secure) == (offer.provider in CLOUDS)
    assert Counter(offer.provider for offer in offers).keys() == CLOUDS | {
        "lambda",
        "runpod",
        "salad",
        "tensordock",
        "vast",
    }


def test_no_spot_price_is_the_full_price_again() -> None:
    offers = shipped_offers(Demand())
    full = {(o.provider, o.id, o.region): o.usd_per_hour for o in offers if not o.spot}
    for offer in offers:
        if offer.spot and offer.provider in CLOUDS:
            listed = full.get((offer.provider, offer.id, offer.region))
            assert listed is None or offer.usd_per_hour < 0.98 * listed


def test_the_sizes_of_clouds_are_known() -> None:
    (big,) = [
        o
        for o in shipped_offers(Demand())
        if o.id == "p5.48xlarge" and o.region == "us-east-1" and not o.spot
    ]
    assert (big.gpus, big.vcpu, big.network, big.country) == (8, 192, Network.fabric, "us")


def test_a_demand_narrows() -> None:
    some = shipped_offers(Demand(gpus=("H100",), count=8, spot=False))
    assert some
    assert all(o.gpu.startswith("H100") and o.gpus >= 8 and not o.spot for o in some)
