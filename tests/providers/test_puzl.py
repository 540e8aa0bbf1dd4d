"""Puzl: what a quota and nodes leave, at the price that was stated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.kit.fakes.puzl import FakePuzl
from tests.kit.fakes.server import Fake, serve
from tests.providers.contract import ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.base import Provider, UnusableError
from tidemill.providers.puzl import Puzl
from tidemill.providers.trouble import ProviderError, Trouble
from tidemill.spec.placement import Network, Tier


class TestPuzl(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = Puzl
    FAKE: ClassVar[type[Any]] = FakePuzl

    @pytest.fixture
    def fake(self, tmp_path: Path) -> Iterator[Fake]:
        """The vendor, with a place for its kubeconfig."""
        with serve(FakePuzl(tmp_path)) as vendor:
            yield vendor
        assert vendor.violations == []

    def test_a_wrong_key_is_refused_without_showing_it(self, fake: Any) -> None:
        """The key is in the file, not in the environment."""
        environment = fake.environment()
        fake.kubeconfig(token="canary-wrong-key")  # noqa: S106 - wrong, as it says
        client = Puzl.connect(environment)
        with pytest.raises(ProviderError) as told:
            client.offers(Demand())
        client.close()
        assert told.value.trouble is Trouble.unauthorized
        assert "canary" not in str(told.value)

    def test_the_strictest_quota_and_the_nodes_say_what_can_be_had(
        self, provider: Provider
    ) -> None:
        offers = provider.offers(Demand())
        assert [(it.id, it.gpus, it.usd_per_hour, it.available) for it in offers] == [
            ("1x A100-PCIE-40GB", 1, 1.25, 5),
            ("2x A100-PCIE-40GB", 2, 2.5, 2),
            ("4x A100-PCIE-40GB", 4, 5.0, 1),
        ]
        assert {(it.gpu, it.gpu_mem_gib) for it in offers} == {("A100-PCIE-40GB", 40)}
        assert {(it.tier, it.network) for it in offers} == {(Tier.managed, Network.private)}
        assert {it.source for it in offers} == {"PUZL_USD_PER_GPU_HOUR"}

    def test_a_used_up_quota_leaves_nothing(self, fake: Any, provider: Provider) -> None:
        fake.quotas = [(2, 2)]
        assert provider.offers(Demand()) == []

    def test_without_a_quota_nobody_knows_how_many_there_are(
        self, fake: Any, provider: Provider
    ) -> None:
        fake.quotas = [None]
        assert {offer.available for offer in provider.offers(Demand())} == {None}

    def test_where_nodes_are_hidden_it_is_what_the_documents_say(
        self, fake: Any, provider: Provider
    ) -> None:
        fake.nodes = None
        (single,) = provider.offers(Demand())
        assert (single.gpu, single.gpus, single.available) == ("A100-PCIE-40GB", 1, 5)

    def test_an_unknown_gpu_keeps_its_name(self, fake: Any, provider: Provider) -> None:
        fake.nodes = [("NVIDIA-X900", 1), ("NVIDIA-A100-PCIE-40GB", 1)]
        assert {it.gpu for it in provider.offers(Demand())} == {"NVIDIA-X900", "A100-PCIE-40GB"}

    @pytest.mark.parametrize("stated", ["", "0", "-1", "nan", "cheap", "1000"])
    def test_a_price_is_needed(self, fake: Any, stated: str) -> None:
        environment = fake.environment() | {"PUZL_USD_PER_GPU_HOUR": stated}
        with pytest.raises(UnusableError, match="publishes no prices") as told:
            Puzl.connect(environment)
        assert "export PUZL_USD_PER_GPU_HOUR" in told.value.remedy

    def test_a_token_is_not_sent_in_the_open(self, fake: Any) -> None:
        environment = fake.environment()
        fake.kubeconfig(server=fake.url, token=fake.KEY)
        del environment["TIDEMILL_PUZL_URL"]
        with pytest.raises(UnusableError, match="not encrypted"):
            Puzl.connect(environment)
        assert fake.requests == []
