"""Cache: what providers said a while ago, for when they do not answer now. Its age goes with it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tidemill.plan.offers import Demand, Offer, Rates
from tidemill.spec.placement import Network, Tier

FORGET_S = 7 * 24 * 3600.0
"""Seconds after which an answer is worth less than the shipped catalogue."""
SCHEMA = 1


class Cache:
    """Answers to one demand.

    Args:
        place: Directory; None keeps nothing.
        demand: What was looked for; answers to another one are no use.
    """

    def __init__(self, place: Path | None, demand: Demand) -> None:
        self._place = place
        asked = json.dumps([SCHEMA, dataclasses.asdict(demand)], sort_keys=True)
        self._key = hashlib.sha256(asked.encode()).hexdigest()[:16]

    def read(self, provider: str) -> list[Offer]:
        """What a provider last said; nothing if that is long ago, or cannot be read."""
        if self._place is None:
            return []
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            path = self._path(self._place, provider)
            if time.time() - path.stat().st_mtime < FORGET_S:
                return [_decode(plain) for plain in json.loads(path.read_text(encoding="utf-8"))]
        return []

    def write(self, provider: str, offers: list[Offer]) -> None:
        """Keep what a provider said; a disk that is full is no reason to fail."""
        if self._place is None:
            return
        with contextlib.suppress(OSError):
            self._place.mkdir(parents=True, exist_ok=True)
            text = json.dumps([dataclasses.asdict(offer) for offer in offers])
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self._place, delete=False
            ) as file:
                file.write(text)
            Path(file.name).replace(self._path(self._place, provider))

    def _path(self, place: Path, provider: str) -> Path:
        return place / f"{provider}-{self._key}.json"


def _decode(plain: dict[str, Any]) -> Offer:
    known: dict[str, Any] = plain | {
        "tier": Tier(plain["tier"]),
        "network": Network(plain["network"]),
        "rates": Rates(**plain["rates"]),
        "live": False,
    }
    return Offer(**known)
