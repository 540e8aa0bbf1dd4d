"""RunPod: held against its specification, and against a vendor that misbehaves."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.kit.fakes.runpod import RTX4090, FakeRunPod
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.base import Provider
from tidemill.providers.runpod import RunPod
from tidemill.spec.placement import Network, Tier


class TestRunPod(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = RunPod
    FAKE: ClassVar[type[Any]] = FakeRunPod

    def test_an_offer_is_a_number_of_gpus_in_a_data_center(self, provider: Provider) -> None:
        found = provider.offers(Demand(gpus=("H100",)))
        offers = {(offer.gpus, offer.region): offer for offer in found}
        assert set(offers) == {
            (count, place) for count in (1, 2, 4) for place in ("US-KS-2", "EU-RO-1")
        }
        four = offers[4, "EU-RO-1"]
        assert (four.gpu, four.gpu_mem_gib) == ("H100-SXM5-80GB", 80)
        assert (four.usd_per_hour, four.spot, four.country) == (10.76, False, "ro")
        assert (four.tier, four.network) == (Tier.managed, Network.public)
        assert offers[1, "US-KS-2"].country == "us"

    def test_the_community_costs_less_and_is_trusted_less(self, provider: Provider) -> None:
        found = provider.offers(Demand(gpus=("RTX-4090",)))
        community = [offer for offer in found if offer.tier is Tier.community]
        assert [(offer.gpus, offer.usd_per_hour) for offer in community] == [(1, 0.34), (2, 0.68)]
        assert {(offer.region, offer.country) for offer in community} == {("", "")}

    def test_the_country_is_in_the_name_of_the_data_center(self, provider: Provider) -> None:
        found = provider.offers(Demand(gpus=("RTX-4090",), count=8))
        assert {offer.region: offer.country for offer in found} == {
            "CA-MTL-1": "ca",
            "EUR-IS-2": "is",
            "somewhere": "",
        }

    def test_what_is_sold_out_is_not_offered(self, fake: Any, provider: Provider) -> None:
        assert provider.offers(Demand(gpus=("A100",))) == []
        fake.stock["NVIDIA A100 80GB PCIe", "COMMUNITY"] = (1, ())
        (one,) = provider.offers(Demand(gpus=("A100",)))
        assert (one.gpus, one.usd_per_hour, one.tier) == (1, 1.19, Tier.community)

    def test_a_cloud_offers_no_more_than_its_largest_machine(
        self, fake: Any, provider: Provider
    ) -> None:
        fake.stock[RTX4090, "COMMUNITY"] = (8, ())
        found = provider.offers(Demand(gpus=("RTX-4090",)))
        assert max(offer.gpus for offer in found if offer.tier is Tier.community) == 4

    def test_a_missing_price_is_no_offer(self, provider: Provider) -> None:
        assert provider.offers(Demand(gpus=("L4",))) == []

    def test_only_counts_that_are_wanted_are_asked_for(self, fake: Any, provider: Provider) -> None:
        assert {offer.gpus for offer in provider.offers(Demand(count=2, most=4))} == {2, 4}
        assert len(fake.requests) == 4
        assert all("product=POD" in asked for asked in fake.requests)

    def test_there_is_no_spot_market(self, fake: Any, provider: Provider) -> None:
        assert provider.offers(Demand(spot=True)) == []
        assert fake.requests == []

    def test_an_unknown_gpu_keeps_its_name(self, provider: Provider) -> None:
        (strange,) = provider.offers(Demand(gpus=("X900",)))
        assert (strange.gpu, strange.gpu_mem_gib) == ("NVIDIA X900", 512)
