"""Vast: held against its specification, and against a vendor that misbehaves."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from werkzeug import Response

from tests.kit.fakes.server import Fault
from tests.kit.fakes.vast import PATH, FakeVast
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import GIB_PER_GB, Demand
from tidemill.providers.base import Provider
from tidemill.providers.http import ProviderError, Trouble
from tidemill.providers.rates import rates_of
from tidemill.providers.vast import LIMIT, Vast
from tidemill.spec.placement import Network, Tier


def answer_with(fake: Any, change: dict[str, Any], index: int = 0) -> None:
    """Have a fake's ask answered otherwise than it would be."""
    good = fake.routes()["POST", PATH]

    def answer(request: Any) -> Any:
        found = good(request)
        found["offers"][index] |= change
        return found

    fake.routes = lambda: {("POST", PATH): answer}


class TestVast(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = Vast
    FAKE: ClassVar[type[Any]] = FakeVast

    def test_an_offer_is_what_is_asked_for_it(self, provider: Provider) -> None:
        (eight,) = provider.offers(Demand(gpus=("H100",), spot=False))
        assert (eight.gpu, eight.gpus, eight.gpu_mem_gib) == ("H100-SXM5-80GB", 8, 80)
        assert (eight.usd_per_hour, eight.spot, eight.available) == (16.0, False, 1)
        assert (eight.region, eight.country) == ("Germany, DE", "de")
        assert (eight.reliability, eight.down_mbps) == (0.9985, 850.5)
        assert eight.network is Network.public

    def test_the_price_is_without_the_disk(self, provider: Provider) -> None:
        prices = {
            offer.usd_per_hour
            for disk_gib in (10.0, 400.0)
            for offer in provider.offers(Demand(gpus=("H100",), spot=False, disk_gib=disk_gib))
        }
        assert prices == {16.0}

    def test_what_else_is_billed_by_the_hour_is_in_the_price(
        self, fake: Any, provider: Provider
    ) -> None:
        answer_with(fake, {"dph_base": 0.4, "dph_total": 0.55, "storage_total_cost": 0.05})
        (offer,) = provider.offers(Demand(gpus=("RTX-4090",), most=1, spot=False))
        assert offer.usd_per_hour == 0.5

    def test_without_a_total_the_base_is_the_price(self, fake: Any, provider: Provider) -> None:
        answer_with(fake, {"dph_base": 0.42, "dph_total": None})
        (offer,) = provider.offers(Demand(gpus=("RTX-4090",), most=1, spot=False))
        assert offer.usd_per_hour == 0.42

    def test_a_bid_costs_what_would_win_now(self, provider: Provider) -> None:
        (spot,) = provider.offers(Demand(gpus=("RTX-4090",), most=1, spot=True))
        assert (spot.usd_per_hour, spot.spot) == (0.31, True)

    def test_a_bid_is_never_below_the_least(self, fake: Any, provider: Provider) -> None:
        answer_with(fake, {"min_bid": 0.35})
        (spot,) = provider.offers(Demand(gpus=("RTX-4090",), most=1, spot=True))
        assert spot.usd_per_hour == 0.35

    def test_both_markets_are_asked_unless_one_is_wanted(
        self, fake: Any, provider: Provider
    ) -> None:
        for spot, types in ((None, [None, "bid"]), (False, [None]), (True, ["bid"])):
            fake.asked.clear()
            provider.offers(Demand(spot=spot))
            assert [question.get("type") for question in fake.asked] == types

    def test_every_host_has_rates_of_its_own(self, provider: Provider) -> None:
        (offer,) = provider.offers(Demand(gpus=("H100",), spot=False))
        assert offer.rates.disk_usd_per_gib_month == pytest.approx(0.15 / GIB_PER_GB)
        assert offer.rates.egress_usd_per_gib == pytest.approx(0.005 / GIB_PER_GB)
        assert offer.rates.ingress_usd_per_gib == pytest.approx(0.002 / GIB_PER_GB)
        assert offer.rates.boot_s == rates_of("vast").boot_s

    def test_rates_that_are_not_stated_are_the_usual_ones(
        self, fake: Any, provider: Provider
    ) -> None:
        unknown = {"storage_cost": None, "inet_up_cost": -1, "inet_down_cost": None}
        answer_with(fake, unknown | {"inet_down": 0, "reliability2": None})
        (offer,) = provider.offers(Demand(gpus=("H100",), spot=False))
        assert offer.rates == rates_of("vast")
        assert (offer.down_mbps, offer.reliability) == (None, None)

    def test_only_a_verified_data_center_is_trusted(self, fake: Any, provider: Provider) -> None:
        tiers = {offer.id: offer.tier for offer in provider.offers(Demand(spot=False))}
        assert tiers.pop("103") is Tier.managed
        assert set(tiers.values()) == {Tier.community}
        answer_with(fake, {"verification": "deverified"})
        (offer,) = provider.offers(Demand(gpus=("H100",), spot=False))
        assert offer.tier is Tier.community

    def test_an_ask_has_its_share_of_the_host(self, fake: Any, provider: Provider) -> None:
        quarter, whole = provider.offers(Demand(gpus=("RTX-4090",), spot=False))
        assert (quarter.vcpu, quarter.ram_gib) == (16, 64)
        assert (whole.vcpu, whole.ram_gib) == (64, 256)
        answer_with(fake, {"cpu_cores": None})
        (unknown, _) = provider.offers(Demand(gpus=("RTX-4090",), spot=False))
        assert unknown.ram_gib == 0

    def test_what_cannot_be_rented_or_reached_is_not_offered(self, provider: Provider) -> None:
        ids = {offer.id for offer in provider.offers(Demand(spot=False))}
        assert ids == {"101", "102", "103", "104", "105", "111"}

    def test_a_missing_price_is_no_offer(self, fake: Any, provider: Provider) -> None:
        ids = {offer.id for offer in provider.offers(Demand(spot=True))}
        assert "105" not in ids  # takes no bids
        assert "110" not in ids
        for absurd in (-1.0, 1e6):
            fake.asks[2]["usd"] = absurd
            assert provider.offers(Demand(gpus=("H100",), spot=False)) == []

    def test_a_machine_without_gpus_is_no_offer(self, fake: Any, provider: Provider) -> None:
        fake._check_answer = lambda *_: None
        answer_with(fake, {"num_gpus": 0})
        assert provider.offers(Demand(gpus=("H100",), spot=False)) == []

    def test_the_vendor_does_the_filtering(self, fake: Any, provider: Provider) -> None:
        offers = provider.offers(Demand(gpus=("RTX-4090",), count=2, most=4, spot=False))
        assert [offer.id for offer in offers] == ["102"]
        (question,) = fake.asked
        assert question["gpu_name"] == {"in": ["RTX 4090"]}
        assert question["num_gpus"] == {"gte": 2, "lte": 4}
        assert question["rentable"] == question["verified"] == {"eq": True}
        assert question["direct_port_count"] == {"gte": 1}
        assert question["limit"] == LIMIT
        assert question["order"] == [["dph_total", "asc"]]

    def test_a_disk_must_fit(self, fake: Any, provider: Provider) -> None:
        assert provider.offers(Demand(disk_gib=600)) == []
        assert fake.asked[-1]["allocated_storage"] == 645  # gigabytes
        assert "109" in {offer.id for offer in provider.offers(Demand(disk_gib=10))}

    def test_kinds_that_share_a_name_are_told_apart_by_memory(
        self, fake: Any, provider: Provider
    ) -> None:
        (offer,) = provider.offers(Demand(gpus=("A100-PCIE-80GB",), spot=False))
        assert (offer.id, offer.gpu_mem_gib) == ("105", 80)
        assert fake.asked[-1]["gpu_name"] == {"in": ["A100 PCIE"]}

    def test_a_family_is_asked_for_by_all_its_names(self, fake: Any, provider: Provider) -> None:
        provider.offers(Demand(gpus=("h100",), spot=False))
        assert fake.asked[-1]["gpu_name"] == {"in": ["H100 NVL", "H100 PCIE", "H100 SXM"]}

    def test_an_unknown_gpu_keeps_its_name(self, fake: Any, provider: Provider) -> None:
        (strange,) = provider.offers(Demand(gpus=("Imaginary",), spot=False))
        assert (strange.gpu, strange.gpu_mem_gib) == ("Imaginary RTX 9999", 512)
        assert (strange.region, strange.country, strange.tier) == ("", "", Tier.community)
        assert "gpu_name" not in fake.asked[-1]
        both = provider.offers(Demand(gpus=("Imaginary", "H100"), spot=False))
        assert {offer.id for offer in both} == {"103", "111"}

    def test_an_error_that_comes_as_a_success_is_told(self, fake: Any, provider: Provider) -> None:
        fake.fail(Fault.error_as_success)
        with pytest.raises(ProviderError, match="error_503 overloaded"):
            provider.offers(Demand())

    @pytest.mark.parametrize(
        ("said", "trouble"),
        [("Invalid user key", Trouble.unauthorized), ("no such thing", Trouble.missing)],
    )
    def test_a_wrong_key_is_one_also_where_it_is_called_not_found(
        self, fake: Any, provider: Provider, said: str, trouble: Trouble
    ) -> None:
        body = json.dumps(fake.error(404, said))
        fake.routes = lambda: {
            ("POST", PATH): lambda _: Response(body, 404, content_type="application/json")
        }
        with pytest.raises(ProviderError, match=said) as told:
            provider.offers(Demand())
        assert told.value.trouble is trouble
