"""Looking for machines: filtered, priced with everything, cheapest first, nothing hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plan.offers import make_offer
from tidemill.cluster import offers as looking
from tidemill.cluster.offers import act, cache_of, look_for_offers, make_row
from tidemill.plan.offers import Refusal
from tidemill.providers.market import Market
from tidemill.report.market import OffersPage, ProvidersPage
from tidemill.spec.fleet import FleetAction, FleetSpec
from tidemill.spec.placement import Network, Tier

NOW_S = 2e9


def make_spec(**wanted: Any) -> FleetSpec:
    return FleetSpec(**{"action": FleetAction.offers, "live": False} | wanted)


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What there is; tests put it there."""
    there: list[Any] = []
    monkeypatch.setattr(
        looking,
        "_market",
        lambda *_: Market(
            offers=tuple(there),
            refusals=(Refusal(subject="vast", reason="no key", remedy="export it"),),
            live=(),
        ),
    )
    return there


def test_cheapest_first_by_what_it_really_costs(market: list[Any]) -> None:
    market += [
        make_offer(id="cheap but far", usd_per_hour=3.0, down_mbps=10.0),
        make_offer(id="near", usd_per_hour=3.1, down_mbps=10_000.0),
    ]
    page = look_for_offers(make_spec(data_gib=50), {}, now_s=NOW_S)
    assert [row.id for row in page.offers] == ["near", "cheap but far"]
    first = page.offers[0]
    assert first.effective_usd_per_gpu_hour > first.usd_per_gpu_hour == 3.1
    total = sum(first.terms_usd.values())
    assert first.effective_usd_per_gpu_hour == pytest.approx(total / 10.0)


def test_what_is_refused_is_told(market: list[Any]) -> None:
    market += [
        make_offer(id="strangers", tier=Tier.community),
        make_offer(id="slow", network=Network.public),
        make_offer(id="good"),
    ]
    page = look_for_offers(make_spec(tier=Tier.managed, network=Network.private), {}, now_s=NOW_S)
    assert [row.id for row in page.offers] == ["good"]
    assert {row.subject.split("@")[0] for row in page.refused} == {
        "lambda:strangers",
        "lambda:slow",
    }
    assert [(row.subject, row.reason) for row in page.skipped] == [("vast", "no key")]


def test_the_rest_is_counted(market: list[Any]) -> None:
    market += [make_offer(id=str(n)) for n in range(5)]
    page = look_for_offers(make_spec(top=2), {}, now_s=NOW_S)
    assert (len(page.offers), page.more) == (2, 3)
    assert look_for_offers(make_spec(top=0), {}, now_s=NOW_S).more == 0


def test_an_empty_market_is_a_page(market: list[Any]) -> None:
    page = look_for_offers(make_spec(gpu="H100"), {}, now_s=NOW_S)
    assert (page.offers, page.more) == ((), 0)


def test_age_is_that_of_the_price() -> None:
    assert make_row(make_offer(fetched_at=NOW_S - 60), make_spec(), NOW_S).age_s == 60
    assert make_row(make_offer(fetched_at=0.0), make_spec(), NOW_S).age_s is None


def test_the_catalogue_answers_without_keys_and_providers_say_what_they_need() -> None:
    page = act(make_spec(gpu="H100"), {})
    assert isinstance(page, OffersPage)
    assert page.offers
    known = act(make_spec(action=FleetAction.providers), {})
    assert isinstance(known, ProvidersPage)
    vast = next(row for row in known.providers if row.name == "vast")
    assert (vast.usable, vast.reason) == (False, "VAST_API_KEY is not set")
    assert "export VAST_API_KEY" in vast.remedy


def test_answers_are_kept_where_caches_are(tmp_path: Path) -> None:
    assert cache_of({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "tidemill" / "offers"
    assert cache_of({}).parent.name == "tidemill"
