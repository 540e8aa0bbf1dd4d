"""Recordings of spot markets are read in the formats in which they are published."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill.errors import SpecError
from tidemill.plan.spot_market import (
    Recording,
    Zone,
    read_counts,
    read_egress,
    read_offers,
    read_prices,
    region_of,
)

PUBLISHED = Path(os.environ.get("TIDEMILL_TRACES", "")) / "skynomad"
published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="TIDEMILL_TRACES names no folder with SkyNomad's traces"
)

COUNTS = """\
scheduled_at,us-east4-a,us-west1-b
2025-10-03T17:10:00.002281-07:00,16,0
2025-10-03T17:20:00.003952-07:00,15,16
2025-10-03T17:30:00.003952-07:00,16,16
2025-10-03T18:00:00.003952-07:00,0,16
"""
OFFERS = """\
# noted by hand
scheduled_at,us-east-1a,us-west-2b
2023-02-24T22:15,,0.5

2023-02-24T22:30,1.25,0.5
2023-02-24T22:45,,0.75
"""


def test_counts() -> None:
    found = read_counts(
        COUNTS, "c.csv", machines=16, usd_per_hour={"us-east4": 1.5, "us-west1": 2.0}
    )
    assert found.step_hours == pytest.approx(1 / 6, rel=1e-4)
    assert found.steps == 6  # what was not asked for is as it was before
    east, west = found.zones
    assert east == Zone(
        name="us-east4-a", usd_per_hour=(1.5,) * 6, up=(True, False, True, True, True, False)
    )
    assert (west.usd_per_hour[0], west.up) == (2.0, (False, *[True] * 5))


def test_offers() -> None:
    assert read_offers(OFFERS, "o.csv") == Recording(
        step_hours=0.25,
        zones=(
            Zone(name="us-east-1a", usd_per_hour=(1.25, 1.25, 1.25), up=(False, True, False)),
            Zone(name="us-west-2b", usd_per_hour=(0.5, 0.5, 0.75), up=(True, True, True)),
        ),
    )


def test_prices() -> None:
    found = read_prices('{"us-east-1a_v100_1": [1.5, 1.25]}', step_hours=0.5)
    zone = Zone(name="us-east-1a_v100_1", usd_per_hour=(1.5, 1.25), up=(True, True))
    assert found == Recording(step_hours=0.5, zones=(zone,))


def test_egress() -> None:
    text = "from_region,to_region,price_usd_per_gb\nus-east-1,us-west-2,0.02\n"
    assert read_egress(text) == {("us-east-1", "us-west-2"): 0.02}


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a_v100_1", "us-east-1"),
        ("ap-northeast-1a", "ap-northeast-1"),
        ("us-central1-a", "us-central1"),
        ("us-central1 on-demand", "us-central1"),
        ("attic", "attic"),
    ],
)
def test_regions(zone: str, region: str) -> None:
    assert region_of(zone) == region


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no steps"),
        ("at,a\n2023-02-24T22:15,1\n", "has no steps"),
        ("at,a\nsoon,1\nlater,2\n", "has no steps"),
        ("at,a\n2023-02-24T22:15,1\n2023-02-24T22:30,1,2\n", "bad row at 2023-02-24T22:30"),
        (
            "at,a\n2023-02-24T22:30,1\n2023-02-24T22:15,1\n2023-02-24T22:45,1\n",
            "bad row at 2023-02-24T22:30",
        ),
        ("at,a\n2023-02-24T22:15,1\n2023-02-24T22:30,many\n", "no number: 'many'"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        read_offers(text, "x.csv")


@published
def test_what_was_published_can_be_read() -> None:
    prices = read_prices((PUBLISHED / "v100_spot_prices.json").read_text(), step_hours=195 / 3600)
    assert (len(prices.zones), prices.steps) == (9, 20158)
    egress = read_egress((PUBLISHED / "aws_egress_pricing.csv").read_text())
    assert len(egress) == 1122
    assert egress["us-east-1", "us-west-2"] == 0.02
