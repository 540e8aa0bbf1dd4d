"""Spot market: prices and machines as they were recorded, zone by zone.

A recording is cut into steps of one length, in which nothing changes; between two of them machines
may be gone. Three kinds of file can be read:

    scheduled_at,zone-a,zone-b    times, and dollars an hour or nothing
    scheduled_at,zone-a,zone-b    times, and how many machines could be had: SkyNomad, H100
    {"zone-a": [0.91, 0.92]}      dollars an hour in every step: SkyNomad, V100
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import cast

from tidemill.errors import SpecError

KEY = "market"
REGION = re.compile(r"[a-z]+-[a-z]+-?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One spot market over time.

    Attributes:
        name: Of the zone, first its region.
        usd_per_hour: Price of one machine, by step.
        up: Whether the fleet could be had, by step.
    """

    name: str
    usd_per_hour: tuple[float, ...]
    up: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Spot markets over the same time.

    Attributes:
        step_hours: Length of a step.
        zones: The markets.
    """

    step_hours: float
    zones: tuple[Zone, ...]

    @property
    def steps(self) -> int:
        """Its length."""
        return len(self.zones[0].up)


def region_of(name: str) -> str:
    """The region in the name of a zone, as AWS and Google Cloud form them."""
    found = REGION.match(name)
    return found.group() if found else name


def read_offers(text: str, source: str) -> Recording:
    """Read a table of times and, by zone, dollars an hour, or nothing where none could be had."""
    step_hours, columns = _table(text, source)
    zones: list[Zone] = []
    for name, cells in columns.items():
        up = tuple(bool(cell) for cell in cells)
        prices: list[float] = []
        price = _number(next((cell for cell in cells if cell), "0"), source)
        for cell in cells:
            price = _number(cell, source) if cell else price
            prices.append(price)
        zones.append(Zone(name=name, usd_per_hour=tuple(prices), up=up))
    return Recording(step_hours=step_hours, zones=tuple(zones))


def read_counts(
    text: str, source: str, *, machines: int, usd_per_hour: Mapping[str, float]
) -> Recording:
    """Read a table of times and, by zone, machines that could be had.

    Args:
        text: The file.
        source: Its name, for errors.
        machines: That a fleet needs.
        usd_per_hour: Price of one machine, by region.
    """
    step_hours, columns = _table(text, source)
    zones = [
        Zone(
            name=name,
            usd_per_hour=(usd_per_hour[region_of(name)],) * len(cells),
            up=tuple(_number(cell, source) >= machines for cell in cells),
        )
        for name, cells in columns.items()
    ]
    return Recording(step_hours=step_hours, zones=tuple(zones))


def read_prices(text: str, *, step_hours: float) -> Recording:
    """Read a JSON object of zones with dollars an hour by step; machines could always be had."""
    found = cast("dict[str, list[float]]", json.loads(text))
    zones = [
        Zone(name=name, usd_per_hour=tuple(prices), up=(True,) * len(prices))
        for name, prices in found.items()
    ]
    return Recording(step_hours=step_hours, zones=tuple(zones))


def read_egress(text: str) -> dict[tuple[str, str], float]:
    """Read a table of dollars per 1e9 bytes, by region from which and region to which."""
    return {
        (row["from_region"], row["to_region"]): float(row["price_usd_per_gb"])
        for row in csv.DictReader(text.splitlines())
    }


def _table(text: str, source: str) -> tuple[float, dict[str, list[str]]]:
    """Hours of a step, and cells by column; where rows are missing, the one before them holds."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    names, *rows = list(csv.reader(lines)) or [[""]]
    try:
        times = [datetime.fromisoformat(row[0]).timestamp() / 3600 for row in rows]
        step_hours = statistics.median(after - before for before, after in pairwise(times))
    except ValueError as error:
        remedy = "begin each row with a time in ISO 8601, and have two rows at least"
        raise SpecError(KEY, f"{source} has no steps: {error}", remedy) from error
    filled: list[list[str]] = []
    for row, (before, after) in zip(rows, pairwise([*times, times[-1] + step_hours]), strict=True):
        if len(row) != len(names) or after <= before:
            raise SpecError(KEY, f"{source} has a bad row at {row[0]}", "mend the file")
        filled += [row] * round((after - before) / step_hours)
    columns = zip(*filled, strict=True)
    return step_hours, {n: list(c) for n, c in zip(names, columns, strict=True) if n != names[0]}


def _number(cell: str, source: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise SpecError(KEY, f"{source} has no number: {cell!r}", "mend the file") from error
