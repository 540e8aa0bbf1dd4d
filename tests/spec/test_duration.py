"""Durations mean what people type."""

from __future__ import annotations

import pytest

from tidemill.spec.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("30m", 1800.0), ("12h", 43200.0), ("1d12h", 129600.0), ("1.5h", 5400.0)],
)
def test_units_add_up(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "h", "-1h", "12 h", "1w", "0h", "1h now", "1e3s"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)
