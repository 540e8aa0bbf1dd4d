"""Salad: held against its specification, and against a vendor that misbehaves."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tests.kit.fakes.salad import FakeSalad
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.base import Provider, UnusableError
from tidemill.providers.salad import Salad
from tidemill.spec.placement import Network, Tier


class TestSalad(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = Salad
    FAKE: ClassVar[type[Any]] = FakeSalad

    def test_cores_and_memory_are_added_to_the_gpu(self, provider: Provider) -> None:
        full, spot = sorted(provider.offers(Demand(gpus=("RTX-4090",))), key=lambda it: it.spot)
        assert (full.usd_per_hour, spot.usd_per_hour) == (0.364, 0.244)  # as in its documents
        assert (full.spot, spot.spot) == (False, True)
        assert (full.vcpu, full.ram_gib, full.gpus, full.gpu_mem_gib) == (8, 32, 1, 24)
        assert full.id.endswith("/high")
        assert spot.id.endswith("/batch")
        assert (full.tier, full.network) == (Tier.community, Network.public)
        assert full.rates.free_boot

    def test_more_memory_costs_more_and_ends_where_the_machine_does(
        self, provider: Provider
    ) -> None:
        (more, _) = provider.offers(Demand(gpus=("RTX-4090",), ram_gib=48))
        assert (more.ram_gib, more.usd_per_hour) == (48, 0.38)
        (most, _) = provider.offers(Demand(gpus=("RTX-4090",), ram_gib=512))
        assert most.ram_gib == 60

    def test_a_missing_price_is_no_offer(self, provider: Provider) -> None:
        (full,) = provider.offers(Demand(gpus=("RTX-3060",)))
        assert not full.spot
        assert provider.offers(Demand(gpus=("RTX-5090",))) == []

    def test_one_price_for_all_priorities_is_no_spot_market(self, provider: Provider) -> None:
        (full,) = provider.offers(Demand(gpus=("L40S",)))
        assert (full.spot, full.tier) == (False, Tier.managed)

    def test_an_unknown_gpu_keeps_its_name(self, provider: Provider) -> None:
        strange = provider.offers(Demand(gpus=("RTX 9990",)))
        assert {(offer.gpu, offer.gpu_mem_gib) for offer in strange} == {("RTX 9990 (96 GB)", 96)}

    def test_a_machine_has_one_gpu(self, provider: Provider) -> None:
        assert {offer.gpus for offer in provider.offers(Demand())} == {1}
        assert provider.offers(Demand(count=2)) == []
        assert provider.offers(Demand(gpus=("H100",))) == []  # of several, at an unclear price

    def test_an_organization_is_needed(self, fake: Any) -> None:
        with pytest.raises(UnusableError, match="export SALAD_ORGANIZATION"):
            Salad.connect({"SALAD_API_KEY": fake.KEY})
