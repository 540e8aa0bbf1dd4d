"""Lambda Cloud: held against its specification, and against a vendor that misbehaves."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.kit.fakes.lambda_cloud import FakeLambda
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.base import Provider
from tidemill.providers.lambda_cloud import LambdaCloud
from tidemill.spec.placement import Network, Tier


class TestLambdaCloud(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = LambdaCloud
    FAKE: ClassVar[type[Any]] = FakeLambda

    def test_an_offer_is_what_is_listed(self, provider: Provider) -> None:
        offers = {(offer.id, offer.region): offer for offer in provider.offers(Demand())}
        eight = offers["gpu_8x_h100_sxm5", "us-east-1"]
        assert (eight.gpu, eight.gpus, eight.gpu_mem_gib) == ("H100-SXM5-80GB", 8, 80)
        assert (eight.usd_per_hour, eight.country, eight.spot) == (31.92, "us", False)
        assert (eight.tier, eight.network) == (Tier.managed, Network.private)
        assert offers["gpu_1x_a10", "europe-central-1"].country == "de"
        assert ("gpu_8x_a100", "") not in offers  # sold out everywhere

    def test_an_unknown_gpu_keeps_its_name(self, provider: Provider) -> None:
        (strange,) = provider.offers(Demand(gpus=("X900",)))
        assert (strange.gpu, strange.gpu_mem_gib) == ("X900 (512 GB SXM9)", 512)
