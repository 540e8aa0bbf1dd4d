"""Rates: what else is charged, from a table with a source and a date in every row."""

from __future__ import annotations

import csv
from datetime import date
from importlib import resources

from tidemill.plan.offers import Rates
from tidemill.providers.rates import rates_of


def test_what_is_known_is_used_and_the_rest_usual() -> None:
    assert rates_of("aws").egress_usd_per_gib == 0.09
    assert rates_of("salad").free_boot is True
    assert rates_of("nobody") == Rates()


def test_every_row_has_a_source_and_a_date() -> None:
    table = resources.files("tidemill.providers").joinpath("rates.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert rows
    for row in rows:
        assert row["source"]
        assert date.fromisoformat(row["date"])
        assert float(row["value"]) >= 0
        assert row["item"] in Rates.__dataclass_fields__
