"""TensorDock: held against what is known of its interface, and against a vendor that misbehaves."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from werkzeug import Response

from tests.kit.fakes.tensordock import PARTS, FakeTensorDock
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.base import Provider, Status
from tidemill.providers.http import ProviderError, Trouble
from tidemill.providers.rates import rates_of
from tidemill.providers.tensordock import TensorDock
from tidemill.spec.placement import Network, Tier


class TestTensorDock(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = TensorDock
    FAKE: ClassVar[type[Any]] = FakeTensorDock

    def test_a_machine_is_the_sum_of_its_parts(self, provider: Provider) -> None:
        offers = {offer.gpus: offer for offer in provider.offers(Demand(gpus=("H100",)))}
        assert set(offers) == {1, 2, 4, 8}
        two = offers[2]
        assert two.usd_per_hour == pytest.approx(2 * 2.2 + 16 * 0.003 + 64 * 0.002)
        assert (two.vcpu, two.ram_gib, two.available) == (16, 64, 4)
        assert (two.gpu, two.gpu_mem_gib, two.spot) == ("H100-SXM5-80GB", 80, False)
        assert (two.tier, two.network) == (Tier.managed, Network.public)
        assert (two.country, two.region) == ("us", "Austin, United States")
        assert (two.reliability, two.down_mbps) == (0.999, 2500)
        assert two.rates.disk_usd_per_gib_month == pytest.approx(0.0365)

    def test_more_memory_costs_more(self, provider: Provider) -> None:
        (one, *_) = provider.offers(Demand(gpus=("H100",), ram_gib=100))
        assert one.ram_gib == 100
        assert one.usd_per_hour == pytest.approx(2.2 + 8 * 0.003 + 100 * 0.002)

    def test_a_host_gives_no_more_than_it_has_left(self, provider: Provider) -> None:
        one, two = provider.offers(Demand(gpus=("RTX-4090",)))
        assert (one.gpus, one.vcpu, one.ram_gib, one.available) == (1, 8, 32, 1)
        assert (two.gpus, two.vcpu, two.ram_gib, two.available) == (2, 12, 48, 1)
        assert (two.tier, two.country) == (Tier.community, "us")

    def test_a_host_may_bind_cores_and_memory_to_gpus(self, fake: Any, provider: Provider) -> None:
        routes = fake.routes()
        answer = routes["GET", "/api/v2/hostnodes"](None)
        for host in answer["data"]["hostnodes"]:
            host["available_resources"] |= {"max_vcpus_per_gpu": 6, "max_ram_per_gpu": 24}
        fake.routes = lambda: {("GET", "/api/v2/hostnodes"): lambda _: answer}
        (one, *_) = provider.offers(Demand(gpus=("H100",)))
        assert (one.vcpu, one.ram_gib) == (6, 24)

    def test_what_has_no_price_or_nothing_left_is_no_offer(self, provider: Provider) -> None:
        hosts = {offer.id.partition("/")[0] for offer in provider.offers(Demand())}
        assert hosts == {"hn-1", "hn-2", "hn-3"}

    @pytest.mark.parametrize("part", ["per_vcpu_hr", "per_gb_ram_hr"])
    @pytest.mark.parametrize("usd", [0.0, -0.1, 50.0])
    def test_every_part_needs_a_price_that_can_be_believed(
        self, fake: Any, provider: Provider, part: str, usd: float
    ) -> None:
        fake.hosts[0] |= {"pricing": PARTS | {part: usd}}
        assert provider.offers(Demand(gpus=("H100",))) == []

    def test_a_disk_without_a_price_costs_the_usual(self, fake: Any, provider: Provider) -> None:
        fake.hosts[0] |= {"pricing": PARTS | {"per_gb_storage_hr": 0.0}}
        (one, *_) = provider.offers(Demand(gpus=("H100",)))
        assert one.rates == rates_of("tensordock")

    def test_a_count_narrows_what_is_offered(self, provider: Provider) -> None:
        assert {offer.gpus for offer in provider.offers(Demand(count=3))} == {4, 8}
        assert {offer.gpus for offer in provider.offers(Demand(count=2, most=4))} == {2, 4}

    def test_there_is_no_spot_market(self, fake: Any, provider: Provider) -> None:
        assert provider.offers(Demand(spot=True)) == []
        assert fake.requests == []

    def test_an_unknown_gpu_keeps_its_name(self, provider: Provider) -> None:
        (strange,) = provider.offers(Demand(gpus=("x900",)))
        assert (strange.gpu, strange.gpu_mem_gib) == ("x900-sxm9-512gb", 512)
        assert (strange.country, strange.tier) == ("", Tier.community)

    @pytest.mark.parametrize(
        ("code", "trouble"),
        [
            (401, Trouble.unauthorized),
            (403, Trouble.forbidden),
            (429, Trouble.throttled),
            (500, Trouble.down),
        ],
    )
    def test_an_error_that_comes_as_a_success_is_one(
        self, fake: Any, provider: Provider, code: int, trouble: Trouble
    ) -> None:
        fake.routes = lambda: {("GET", "/api/v2/hostnodes"): lambda _: fake.error(code, "no")}
        with pytest.raises(ProviderError, match=f"{code} no") as told:
            provider.offers(Demand())
        assert told.value.trouble is trouble

    def test_an_error_may_also_be_called_a_message(self, fake: Any, provider: Provider) -> None:
        body = json.dumps({"message": "no such key", "status": 401})
        answer = Response(body, content_type="application/json")
        fake._check_answer = lambda *_: None  # no document has it, a client of 2026 allows for it
        fake.routes = lambda: {("GET", "/api/v2/hostnodes"): lambda _: answer}
        with pytest.raises(ProviderError, match="401 no such key") as told:
            provider.offers(Demand())
        assert told.value.trouble is Trouble.unauthorized

    def test_it_is_told_that_it_may_go_away(self, provider: Provider) -> None:
        assert provider.capabilities.status is Status.at_risk
        assert "dropped" in provider.capabilities.evidence
