"""Places: regions in their countries, and none where that is not known."""

from __future__ import annotations

import pytest

from tidemill.plan.places import EU, country_in, country_of, is_within


@pytest.mark.parametrize(
    ("region", "country"),
    [
        ("us-east-1", "us"),
        ("eu-west-1", "ie"),
        ("eu-west-2", "gb"),
        ("eu-central-1", "de"),
        ("europe-west4", "nl"),
        ("europe-west10", "de"),
        ("europe-west1", "be"),
        ("us-central1", "us"),
        ("swedencentral", "se"),
        ("westeurope", "nl"),
        ("eastus2", "us"),
        ("southcentralus", "us"),
        ("asia-southeast1", "sg"),
        ("europe-central-1", "de"),
        ("atlantis-1", ""),
        ("", ""),
    ],
)
def test_a_region_is_in_its_country(region: str, country: str) -> None:
    assert country_of(region) == country


@pytest.mark.parametrize(
    ("text", "country"),
    [("Sweden, SE", "se"), ("US", "us"), ("US-CA-1", "us"), ("Somewhere", ""), ("", "")],
)
def test_a_code_is_read(text: str, country: str) -> None:
    assert country_in(text) == country


def test_the_union_is_its_members() -> None:
    assert len(EU) == 27
    assert is_within("de", ["eu"])
    assert not is_within("gb", ["eu"])
    assert not is_within("ch", ["eu"])
    assert is_within("us", ["eu", "us"])


def test_an_unknown_country_is_within_none() -> None:
    assert not is_within("", ["us"])
    assert is_within("", [])
