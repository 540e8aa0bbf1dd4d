"""Numbers read as people write them, also where rounding changes the unit."""

from __future__ import annotations

import math

import pytest

from tidemill.report.quantities import (
    count_noun,
    show_bytes,
    show_count,
    show_duration,
    show_loss,
    show_moment,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.6, "1.00k"),
        (1000, "1.00k"),
        (9_996, "10.0k"),
        (12_345, "12.3k"),
        (99_960, "100k"),
        (999_600, "1.00M"),
        (1_234_567, "1.23M"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert show_count(value) == text


def test_bytes() -> None:
    assert [show_bytes(n) for n in (0, 1023, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.00 KiB",
        "3.00 MiB",
        "5.00 TiB",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.42, "0.4s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (80, "1m 20s"),
        (3599.7, "1h 00m"),
        (11_100, "3h 05m"),
        (187_200, "2d 04h"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_losses_and_nouns() -> None:
    assert [show_loss(x) for x in (2.0, 0.00012345, 0.0, math.nan)] == [
        "2.0000",
        "0.000123",
        "0.0000",
        "nan",
    ]
    assert [count_noun(n, "worker") for n in (1, 2, 1200)] == [
        "1 worker",
        "2 workers",
        "1,200 workers",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00034, "0.3 ms"),
        (0.0021, "2 ms"),
        (0.00949, "9 ms"),
        (0.0095, "10 ms"),
        (0.0401, "40 ms"),
        (0.0994, "99 ms"),
        (0.0996, "0.1s"),
        (0.42, "0.4s"),
        (80, "1m 20s"),
        (-1, "0.0s"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_moments(seconds: float, text: str) -> None:
    assert show_moment(seconds) == text


def test_a_plural_of_its_own() -> None:
    assert [count_noun(n, "try", "tries") for n in (1, 2)] == ["1 try", "2 tries"]
