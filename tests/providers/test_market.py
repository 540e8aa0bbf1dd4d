"""The market: the table always comes, and whoever is missing is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tests.plan.offers import make_offer
from tidemill.plan.offers import Demand, Offer
from tidemill.providers import market
from tidemill.providers.base import UnusableError
from tidemill.providers.market import ask_market, known_providers, shipped_market
from tidemill.providers.trouble import ProviderError, Trouble

if TYPE_CHECKING:
    import pytest

TEN = {
    "aws",
    "azure",
    "fluidstack",
    "gcp",
    "lambda",
    "puzl",
    "runpod",
    "salad",
    "tensordock",
    "vast",
}


def make_provider(said: list[Offer] | Exception, takes_s: float = 0.0) -> Any:
    class Scripted:
        name: ClassVar[str] = "scripted"
        closed = threading.Event()

        @classmethod
        def connect(cls, environment: Mapping[str, str]) -> Self:
            if "NO_KEY" in environment:
                raise UnusableError("KEY is not set", "export KEY")
            return cls()

        def offers(self, _: Demand) -> list[Offer]:
            time.sleep(takes_s)
            if isinstance(said, Exception):
                raise said
            return said

        def close(self) -> None:
            self.closed.set()

    return Scripted


def test_all_ten_are_discovered() -> None:
    assert known_providers().keys() >= TEN
    for name, load in known_providers().items():
        provider = load()
        assert provider.name == name
        assert provider.capabilities.evidence
        assert provider.capabilities.evidence_date.startswith("20")


def test_who_cannot_be_asked_is_named_and_the_catalogue_stands_in(tmp_path: Path) -> None:
    found = ask_market(
        Demand(gpus=("H100",)),
        {"NO_KEY": "1"},
        providers={"lambda": lambda: make_provider([])},
        cache=tmp_path,
    )
    (why,) = found.refusals
    assert (why.subject, why.reason, why.remedy) == ("lambda", "KEY is not set", "export KEY")
    assert found.live == ()
    assert found.offers
    assert {(offer.provider, offer.live) for offer in found.offers} == {("lambda", False)}


def test_one_that_fails_does_not_take_the_others_along(tmp_path: Path) -> None:
    live = make_offer(provider="good")
    found = ask_market(
        Demand(),
        {},
        providers={
            "good": lambda: make_provider([live]),
            "down": lambda: make_provider(ProviderError("down", Trouble.down, "GET / 500")),
            "buggy": lambda: make_provider(KeyError("data")),
        },
        cache=tmp_path,
    )
    assert found.live == ("good",)
    assert live in found.offers
    reasons = {why.subject: why.reason for why in found.refusals}
    assert reasons["down"] == "server error (GET / 500)"
    assert "KeyError" in reasons["buggy"]


def test_an_empty_market_is_an_answer(tmp_path: Path) -> None:
    found = ask_market(
        Demand(), {}, providers={"lambda": lambda: make_provider([])}, cache=tmp_path
    )
    assert (found.live, found.offers, found.refusals) == (("lambda",), (), ())


def test_nobody_waits_for_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "WAIT_S", 0.3)
    slow = make_provider([make_offer(provider="slow")], takes_s=1.0)
    began_s = time.monotonic()
    found = ask_market(
        Demand(),
        {},
        providers={
            "slow": lambda: slow,
            "quick": lambda: make_provider([make_offer(provider="quick")]),
        },
    )
    assert time.monotonic() - began_s < 0.9
    assert found.live == ("quick",)
    assert [why.subject for why in found.refusals] == ["slow"]
    assert slow.closed.wait(5)


def test_what_was_heard_before_is_better_than_the_catalogue(tmp_path: Path) -> None:
    said = make_provider([make_offer(id="yesterday")])
    ask_market(Demand(), {}, providers={"lambda": lambda: said}, cache=tmp_path)
    found = ask_market(
        Demand(), {"NO_KEY": "1"}, providers={"lambda": lambda: said}, cache=tmp_path
    )
    assert [(offer.id, offer.live) for offer in found.offers] == [("yesterday", False)]


def test_the_catalogue_can_be_had_alone() -> None:
    found = shipped_market(Demand(), ["aws"])
    assert {offer.provider for offer in found.offers} == {"aws"}
    assert (found.live, found.refusals) == ((), ())
