"""Rates: what providers charge besides machines, from a dated table that Tidemill brings along."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from tidemill.plan.offers import Rates

TABLE = "rates.csv"


def rates_of(provider: str) -> Rates:
    """What is known of a provider; usual values for what is not."""
    return _all().get(provider, Rates())


@cache
def _all() -> Mapping[str, Rates]:
    table = resources.files("tidemill.providers").joinpath(TABLE).read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(table.splitlines()):
        value = float(row["value"])
        known = found.setdefault(row["provider"], {})
        known[row["item"]] = bool(value) if row["item"] == "free_boot" else value
    return {provider: Rates(**known) for provider, known in found.items()}
