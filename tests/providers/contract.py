"""What every provider must do, whoever it is: inherit `ProviderContract` and say how to make it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.kit.fakes.server import Fake, Fault, serve
from tidemill.plan.offers import Demand
from tidemill.providers import http
from tidemill.providers.base import Provider, UnusableError
from tidemill.providers.http import ProviderError, Trouble

PASSING = (Fault.throttled, Fault.throttled_with_hint, Fault.broken, Fault.unavailable, Fault.reset)
"""What goes away when one asks again."""
LASTING = {
    Fault.unauthorized: {Trouble.unauthorized},
    Fault.forbidden: {Trouble.forbidden},
    Fault.missing: {Trouble.missing},
    Fault.throttled: {Trouble.throttled},
    Fault.throttled_with_hint: {Trouble.throttled},
    Fault.broken: {Trouble.down},
    Fault.unavailable: {Trouble.down},
    Fault.slow: {Trouble.slow},
    Fault.truncated: {Trouble.unreachable},
    Fault.html: {Trouble.unreadable},
    Fault.error_as_success: {Trouble.down, Trouble.refused, Trouble.unreadable},
    Fault.reset: {Trouble.unreachable},
}


class ProviderContract:
    """What `PROVIDER` does with a vendor like `FAKE`."""

    PROVIDER: ClassVar[type[Provider]]
    FAKE: ClassVar[type[Any]]

    @pytest.fixture
    def fake(self) -> Iterator[Fake]:
        """The vendor, held to its specification."""
        with serve(self.FAKE()) as vendor:
            yield vendor
        assert vendor.violations == []

    @pytest.fixture
    def provider(self, fake: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
        """The client, in a hurry."""
        monkeypatch.setattr(http, "PAUSE_S", 0.01)
        monkeypatch.setattr(http, "SILENCE_S", 0.3)
        monkeypatch.setattr(http, "PATIENCE_S", 5.0)
        monkeypatch.setattr(http.Pace, "turn", lambda _self, _now_s: 0.0)
        client = self.PROVIDER.connect(fake.environment())
        yield client
        client.close()

    def test_offers_are_complete(self, provider: Provider) -> None:
        offers = provider.offers(Demand())
        assert offers
        for offer in offers:
            assert offer.provider == provider.name
            assert offer.id
            assert offer.gpu
            assert offer.gpus >= 1
            assert offer.usd_per_hour > 0
            assert offer.live
            assert offer.source
            assert offer.spot <= provider.capabilities.spot
        assert len({(offer.id, offer.region, offer.spot) for offer in offers}) == len(offers)

    def test_a_demand_narrows_what_is_offered(self, provider: Provider) -> None:
        everything = provider.offers(Demand())
        wanted = everything[0].gpu
        some = provider.offers(Demand(gpus=(wanted,)))
        assert some
        assert {offer.gpu for offer in some} == {wanted}

    def test_a_key_is_needed(self) -> None:
        with pytest.raises(UnusableError) as told:
            self.PROVIDER.connect({})
        assert told.value.reason
        assert told.value.remedy

    def test_a_wrong_key_is_refused_without_showing_it(self, fake: Any) -> None:
        wrong = {
            key: value.replace(fake.KEY, "canary-wrong-key")
            for key, value in fake.environment().items()
        }
        client = self.PROVIDER.connect(wrong)
        with pytest.raises(ProviderError) as told:
            client.offers(Demand())
        client.close()
        assert told.value.trouble in {Trouble.unauthorized, Trouble.forbidden}
        assert "canary" not in str(told.value)

    @pytest.mark.parametrize("fault", PASSING)
    def test_what_passes_is_waited_for(self, fake: Fake, provider: Provider, fault: Fault) -> None:
        fake.fail(fault, times=1)
        assert provider.offers(Demand())

    @pytest.mark.parametrize("fault", list(Fault))
    def test_what_lasts_is_named(
        self, fake: Fake, provider: Provider, fault: Fault, caplog: pytest.LogCaptureFixture
    ) -> None:
        fake.fail(fault)
        with caplog.at_level(logging.DEBUG), pytest.raises(ProviderError) as told:
            provider.offers(Demand())
        assert told.value.trouble in LASTING[fault]
        assert str(told.value).startswith(f"{provider.name}: ")
        assert told.value.remedy
        shown = f"{told.value} {told.value.detail} {caplog.text}"
        assert fake.KEY not in shown
