"""Google Cloud: a machine costs the sum of its parts, and of plain prices only."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tests.kit.fakes.gcp import FakeGcp
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers import gcp
from tidemill.providers.base import Provider
from tidemill.providers.gcp import PARTS, Gcp
from tidemill.providers.sizes import sizes_for
from tidemill.providers.trouble import ProviderError, Trouble
from tidemill.spec.placement import Network, Tier


class TestGcp(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = Gcp
    FAKE: ClassVar[type[Any]] = FakeGcp

    @pytest.mark.parametrize(
        ("size", "usd"),
        [
            ("a2-highgpu-1g", 3.673385),  # listed as 3.67339: 2.933908 + 0.379332 + 0.360145
            ("a2-highgpu-8g", 29.38708),
            ("a2-ultragpu-1g", 5.0688),  # with 375 GiB of local disk
            ("a3-highgpu-8g", 88.489779),  # listed as 88.49, with 6000 GiB
            ("g2-standard-4", 0.706824),
        ],
    )
    def test_a_machine_costs_the_sum_of_its_parts(
        self, provider: Provider, size: str, usd: float
    ) -> None:
        found = [it for it in provider.offers(Demand()) if it.id == size and not it.spot]
        assert [(offer.region, offer.usd_per_hour) for offer in found] == [("us-central1", usd)]

    def test_spot_is_added_up_from_spot_prices(self, provider: Provider) -> None:
        (spot,) = [it for it in provider.offers(Demand(gpus=("A100",), most=1)) if it.spot]
        assert (spot.id, spot.usd_per_hour) == (
            "a2-highgpu-1g",
            round(12 * 0.01 + 85 * 0.002 + 1.2, 6),
        )

    def test_an_offer_says_what_the_table_says(self, provider: Provider) -> None:
        offers = {offer.id: offer for offer in provider.offers(Demand(gpus=("H100",)))}
        mega = offers["a3-megagpu-8g"]
        assert (mega.gpu, mega.gpus, mega.vcpu, mega.ram_gib) == ("H100-SXM5-80GB", 8, 208, 1872)
        assert (mega.tier, mega.network, mega.country) == (Tier.secure, Network.fabric, "us")
        assert mega.usd_per_hour > offers["a3-highgpu-8g"].usd_per_hour

    def test_what_is_not_sold_on_demand_is_not_offered_so(self, provider: Provider) -> None:
        assert {offer.id for offer in provider.offers(Demand(gpus=("H100",)))} == {
            "a3-highgpu-8g",
            "a3-megagpu-8g",
        }

    def test_a_machine_with_a_part_without_a_price_is_not_offered(self, provider: Provider) -> None:
        assert {offer.region for offer in provider.offers(Demand())} == {"us-central1"}

    def test_spot_at_the_full_price_is_no_spot_offer(self, provider: Provider) -> None:
        assert {offer.spot for offer in provider.offers(Demand(gpus=("L4",)))} == {False}

    def test_a_catalogue_without_end_is_an_error(
        self, provider: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gcp, "MOST_PAGES", 2)
        with pytest.raises(ProviderError, match="more than 2 pages") as told:
            provider.offers(Demand())
        assert told.value.trouble is Trouble.unreadable

    def test_the_key_is_in_no_address(self, fake: Any, provider: Provider) -> None:
        provider.offers(Demand())
        assert fake.requests
        assert not any(fake.KEY in asked for asked in fake.requests)

    def test_every_size_has_parts(self) -> None:
        for size in sizes_for("gcp", Demand()):
            assert any(size.id.startswith(start) for start in PARTS), size.id
