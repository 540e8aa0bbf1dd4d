"""Durations as people type them: `90s`, `30m`, `12h`, `3d`, `1d12h`."""

from __future__ import annotations

import re

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: str) -> float:
    """Seconds of a duration.

    Raises:
        ValueError: It is none, or takes no time.
    """
    seconds = sum(float(number) * SECONDS[unit] for number, unit in _PART.findall(text))
    if _WHOLE.fullmatch(text) is None or not seconds:
        raise ValueError(f"{text!r} is no duration")
    return seconds
