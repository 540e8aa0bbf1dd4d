"""Azure: its list of prices, page by page, and what in it is not a price of ours."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tests.kit.fakes.azure import A100, H100, T4, FakeAzure
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.azure import Azure
from tidemill.providers.base import Provider
from tidemill.providers.trouble import ProviderError, Trouble
from tidemill.spec.placement import Network, Tier


class TestAzure(ProviderContract):
    """See `ProviderContract`; the list is public, so what it says of keys cannot hold."""

    PROVIDER: ClassVar[type[Provider]] = Azure
    FAKE: ClassVar[type[Any]] = FakeAzure

    def test_a_key_is_needed(self) -> None:
        Azure.connect({}).close()  # it is not

    def test_a_wrong_key_is_refused_without_showing_it(self, fake: Any) -> None:
        """There is none that could be wrong."""

    def test_a_size_costs_what_is_listed_for_linux_by_the_hour(self, provider: Provider) -> None:
        found = provider.offers(Demand(gpus=("H100-SXM",)))
        offers = {(offer.region, offer.spot): offer for offer in found}
        full = offers["eastus", False]
        assert (full.usd_per_hour, offers["eastus", True].usd_per_hour) == (98.32, 39.33)
        assert (full.id, full.gpu, full.gpus) == (H100, "H100-SXM5-80GB", 8)
        assert (full.vcpu, full.ram_gib, full.country) == (96, 1900, "us")
        assert (full.tier, full.network) == (Tier.secure, Network.fabric)

    def test_all_pages_are_read(self, fake: Any, provider: Provider) -> None:
        offers = provider.offers(Demand())
        assert {(offer.id, offer.region) for offer in offers} == {
            (H100, "eastus"),
            (H100, "westeurope"),
            (A100, "eastus"),
            (T4, "swedencentral"),
        }
        assert len(fake.requests) == 4

    def test_the_link_to_the_next_page_leads_nowhere_else(self, fake: Any) -> None:
        fake.link = "https://prices.example.org/steal?$skip={skip}"
        client = Azure.connect(fake.environment())  # the network beyond loopback is closed to tests
        assert {offer.id for offer in client.offers(Demand())} == {H100, A100, T4}
        client.close()

    @pytest.mark.parametrize("link", ["https://prices.azure.com/?$skip=0", "more", "/?$skip=-4"])
    def test_a_link_that_does_not_lead_on_is_an_error(
        self, fake: Any, provider: Provider, link: str
    ) -> None:
        fake.link = link
        with pytest.raises(ProviderError, match="no next page") as told:
            provider.offers(Demand())
        assert told.value.trouble is Trouble.unreadable

    def test_a_missing_price_is_no_offer(self, provider: Provider) -> None:
        assert {offer.region for offer in provider.offers(Demand(gpus=("A100",)))} == {"eastus"}

    def test_the_full_price_again_is_no_spot_offer(self, provider: Provider) -> None:
        european = [it for it in provider.offers(Demand()) if it.region == "westeurope"]
        assert [(offer.spot, offer.country) for offer in european] == [(False, "nl")]

    def test_what_no_size_meets_is_not_asked_for(self, fake: Any, provider: Provider) -> None:
        assert provider.offers(Demand(gpus=("X900",))) == []
        assert fake.requests == []
