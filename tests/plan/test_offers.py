"""Offers: one noun for every machine."""

from __future__ import annotations

from tests.plan.offers import make_offer


def test_a_price_is_shared_by_the_gpus() -> None:
    assert make_offer(gpus=8, usd_per_hour=32.0).usd_per_gpu_hour == 4.0


def test_a_name_says_who_what_where_and_how() -> None:
    assert make_offer().name == "lambda:box@us-east-1"
    assert make_offer(region="", spot=True).name == "lambda:box spot"
