"""FluidStack: it has no prices, and says so only where it answers."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from tests.kit.fakes.fluidstack import FakeFluidStack
from tests.kit.fakes.server import Fake, Fault
from tests.providers.contract import PASSING, ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.base import Provider, Status, UnusableError
from tidemill.providers.fluidstack import FluidStack


class TestFluidStack(ProviderContract):
    """See `ProviderContract`; what it says of offers cannot hold where there are none."""

    PROVIDER: ClassVar[type[Provider]] = FluidStack
    FAKE: ClassVar[type[Any]] = FakeFluidStack

    def test_offers_are_complete(self, provider: Provider) -> None:
        with pytest.raises(UnusableError, match="publishes no prices") as told:
            provider.offers(Demand())
        assert told.value.remedy == (
            "attach an existing cluster: tide-1 (kubernetes, us-west-2, healthy), "
            "tide-2 (slurm, eu-north-1, stale)"
        )
        assert provider.capabilities.status is Status.attach_only

    def test_a_demand_narrows_what_is_offered(self, provider: Provider) -> None:
        with pytest.raises(UnusableError, match="publishes no prices"):
            provider.offers(Demand(gpus=("H100",)))

    @pytest.mark.parametrize("fault", PASSING)
    def test_what_passes_is_waited_for(self, fake: Fake, provider: Provider, fault: Fault) -> None:
        fake.fail(fault, times=1)
        with pytest.raises(UnusableError, match="publishes no prices"):
            provider.offers(Demand())
        assert len(fake.requests) == 2

    def test_a_project_narrows_the_clusters(self, fake: Any) -> None:
        client = FluidStack.connect({**fake.environment(), "FLUIDSTACK_PROJECT": "proj-b"})
        with pytest.raises(UnusableError, match=r"cluster: tide-2 \(slurm"):
            client.offers(Demand())
        client.close()

    def test_without_a_cluster_one_has_to_be_bought_first(
        self, fake: Any, provider: Provider
    ) -> None:
        fake.clusters = ()
        with pytest.raises(UnusableError, match="ask for an offer at"):
            provider.offers(Demand())
