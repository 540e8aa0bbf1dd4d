"""The cache: what was said comes back as it was, or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.plan.offers import make_offer
from tidemill.plan.offers import Demand, Rates
from tidemill.providers.cache import FORGET_S, Cache

OFFERS = [make_offer(), make_offer(id="other", rates=Rates(boot_s=7.0), available=3, spot=True)]


def test_what_was_said_comes_back_but_is_not_live(tmp_path: Path) -> None:
    Cache(tmp_path, Demand()).write("lambda", OFFERS)
    back = Cache(tmp_path, Demand()).read("lambda")
    assert [offer.id for offer in back] == ["box", "other"]
    assert back[1].rates.boot_s == 7.0
    assert back[1].tier is OFFERS[1].tier
    assert not any(offer.live for offer in back)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_demand_or_provider_is_another_answer(tmp_path: Path) -> None:
    Cache(tmp_path, Demand()).write("lambda", OFFERS)
    assert Cache(tmp_path, Demand(count=8)).read("lambda") == []
    assert Cache(tmp_path, Demand()).read("vast") == []


def test_what_is_damaged_or_old_is_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, Demand())
    cache.write("lambda", OFFERS)
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    for damage in (whole[: len(whole) // 2], "", "{}", '[{"id": 1}]', "[null]"):
        file.write_text(damage)
        assert cache.read("lambda") == []
    file.write_text(whole)
    past_s = time.time() - FORGET_S - 1
    os.utime(file, (past_s, past_s))
    assert cache.read("lambda") == []


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Cache(tmp_path / "file" / "below", Demand()).write("lambda", OFFERS)
    Cache(None, Demand()).write("lambda", OFFERS)
    assert Cache(None, Demand()).read("lambda") == []
