"""Numbers as people read them: 12.3k, 1m 20s, 4.2 MiB.

Three significant digits everywhere: what a person compares at a glance, and narrow enough that a
line of them does not jump about.
"""

from __future__ import annotations

import math

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86400


def show_count(value: float) -> str:
    """A count or a rate in powers of 1000: `950`, `12.3k`, `4.56M`."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def show_bytes(value: float) -> str:
    """A size in powers of 1024: `950 B`, `4.20 MiB`."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def show_duration(seconds: float) -> str:
    """A span of time in its two largest units: `0.4s`, `12s`, `1m 20s`, `3h 05m`, `2d 04h`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:  # noqa: PLR2004 - where one decimal rounds to 10
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < MINUTE_S:
        return f"{whole}s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S}m {whole % MINUTE_S:02}s"
    if whole < DAY_S:
        return f"{whole // HOUR_S}h {whole % HOUR_S // MINUTE_S:02}m"
    return f"{whole // DAY_S}d {whole % DAY_S // HOUR_S:02}h"


def show_moment(seconds: float) -> str:
    """A span of time that may be very short: `0.3 ms`, `2 ms`, `40 ms`, then as a duration."""
    thousandths = seconds * 1000
    if not 0 <= thousandths < 99.5:  # noqa: PLR2004 - where a tenth of a second begins
        return show_duration(seconds)
    return f"{thousandths:.1g} ms" if thousandths < 9.5 else f"{thousandths:.0f} ms"  # noqa: PLR2004


def show_loss(value: float) -> str:
    """A loss to four decimals, or to three digits where those would all be zero."""
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"  # noqa: PLR2004


def count_noun(count: int, noun: str, nouns: str = "") -> str:
    """`1 worker`, `4 workers`; `nouns` is the plural where an s is not enough."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {nouns or f'{noun}s'}"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return "?"
    power = 0
    while abs(value) >= base * 0.9995 and power < len(units) - 1:
        value /= base
        power += 1
    if power == 0:
        return f"{value:.0f}{units[0]}"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0  # noqa: PLR2004
    return f"{value:.{decimals}f}{units[power]}"
