"""Places: the country of a provider's region, and which countries a person means.

Where data may be is a matter of law, so a region that is not known to be in a country counts as
being in none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

EU = frozenset(re.findall("..", "atbebgcyczdedkeeesfifrgrhrhuieitltlulvmtnlplptrosesisk"))
"""Member states, two letters each."""

# By the beginning of a region's name; the longest that fits counts. Source: the lists of regions in
# the documents of AWS, Google Cloud, Azure and Lambda, from memory, 2026-11.
REGIONS: dict[str, str] = {
    # AWS
    "us-": "us",
    "ca-": "ca",
    "mx-": "mx",
    "sa-east-1": "br",
    "eu-central-1": "de",
    "eu-central-2": "ch",
    "eu-west-1": "ie",
    "eu-west-2": "gb",
    "eu-west-3": "fr",
    "eu-north-1": "se",
    "eu-south-1": "it",
    "eu-south-2": "es",
    "ap-south-1": "in",
    "ap-south-2": "in",
    "ap-northeast-1": "jp",
    "ap-northeast-2": "kr",
    "ap-northeast-3": "jp",
    "ap-southeast-1": "sg",
    "ap-southeast-2": "au",
    "ap-southeast-3": "id",
    "ap-southeast-4": "au",
    "ap-east-1": "hk",
    "il-central-1": "il",
    "me-central-1": "ae",
    "me-south-1": "bh",
    "af-south-1": "za",
    # Google Cloud
    "us-central1": "us",
    "northamerica-northeast": "ca",
    "southamerica-east1": "br",
    "europe-west1": "be",
    "europe-west2": "gb",
    "europe-west3": "de",
    "europe-west4": "nl",
    "europe-west6": "ch",
    "europe-west8": "it",
    "europe-west9": "fr",
    "europe-west10": "de",
    "europe-west12": "it",
    "europe-north1": "fi",
    "europe-north2": "se",
    "europe-central2": "pl",
    "europe-southwest1": "es",
    "asia-east1": "tw",
    "asia-east2": "hk",
    "asia-northeast1": "jp",
    "asia-northeast2": "jp",
    "asia-northeast3": "kr",
    "asia-south": "in",
    "asia-southeast1": "sg",
    "asia-southeast2": "id",
    "australia-southeast": "au",
    "me-west1": "il",
    "me-central1": "qa",
    "africa-south1": "za",
    # Azure
    "eastus": "us",
    "westus": "us",
    "centralus": "us",
    "southcentralus": "us",
    "northcentralus": "us",
    "westcentralus": "us",
    "canada": "ca",
    "brazil": "br",
    "northeurope": "ie",
    "westeurope": "nl",
    "uk": "gb",
    "france": "fr",
    "germany": "de",
    "sweden": "se",
    "switzerland": "ch",
    "norway": "no",
    "poland": "pl",
    "italy": "it",
    "spain": "es",
    "southeastasia": "sg",
    "eastasia": "hk",
    "japan": "jp",
    "korea": "kr",
    "australia": "au",
    "centralindia": "in",
    "southindia": "in",
    "uae": "ae",
    # Lambda
    "europe-central-1": "de",
    "europe-south-1": "it",
    "me-west-1": "il",
    "asia-northeast-1": "jp",
    "asia-south-1": "in",
    "australia-east-1": "au",
}
CODE = re.compile(r"([a-z]{2})(?:[-_ ,]|$)")


def country_of(region: str) -> str:
    """Two-letter code of the country a region is in; empty if that is not known."""
    name = region.lower()
    fits = [start for start in REGIONS if name.startswith(start)]
    return REGIONS[max(fits, key=len)] if fits else ""


def country_in(text: str) -> str:
    """The country that a text names by its code at the end or as a whole: `Sweden, SE`, `US-CA-1`.

    Returns:
        Two small letters; empty if there is no code.
    """
    last = re.split(r",\s*", text.strip())[-1].lower()
    found = CODE.match(last)
    return found[1] if found else ""


def is_within(country: str, wanted: Iterable[str]) -> bool:
    """Whether a country is among those that a person named; any is, of none."""
    asked = set(wanted)
    return not asked or country in asked or ("eu" in asked and country in EU)
