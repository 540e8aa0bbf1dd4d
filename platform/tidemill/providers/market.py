"""Market: what every provider offers, asked all at once, with a reason for each that is missing.

Nobody waits for the slowest vendor: one that has not answered in time is refused like any other,
and what was heard of it before, what others have collected, or the shipped catalogue stands in.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from queue import Empty, SimpleQueue

from tidemill.plan.offers import Demand, Offer, Refusal
from tidemill.providers.base import Provider, UnusableError
from tidemill.providers.cache import Cache
from tidemill.providers.catalog import shipped_offers
from tidemill.providers.http import ProviderError, Trouble
from tidemill.providers.second_hand import second_hand_offers

GROUP = "tidemill.providers"
WAIT_S = 8.0
"""Seconds for which the slowest provider is waited for."""

log = logging.getLogger(__name__)

Load = Callable[[], type[Provider]]
Answer = tuple[Offer, ...] | Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """What can be rented.

    Attributes:
        offers: Of all providers that were asked, from wherever was best.
        refusals: Providers that did not answer, and why.
        live: Names of those that did.
    """

    offers: tuple[Offer, ...]
    refusals: tuple[Refusal, ...]
    live: tuple[str, ...]


def known_providers() -> dict[str, Load]:
    """How to import each provider, by name; those that other packages bring included."""
    return {entry.name: entry.load for entry in sorted(entry_points(group=GROUP))}


def shipped_market(demand: Demand, wanted: Collection[str] = ()) -> Market:
    """The catalogue alone; nobody is asked.

    Args:
        demand: What is looked for.
        wanted: Names of providers; empty means all.
    """
    offers = [offer for offer in shipped_offers(demand) if not wanted or offer.provider in wanted]
    return Market(offers=tuple(offers), refusals=(), live=())


def ask_market(
    demand: Demand,
    environment: Mapping[str, str],
    *,
    wanted: Collection[str] = (),
    cache: Path | None = None,
    providers: Mapping[str, Load] | None = None,
) -> Market:
    """Ask every provider that can be asked.

    Args:
        demand: What is looked for.
        environment: Has their keys.
        wanted: Names of providers; empty means all.
        cache: Directory of earlier answers; None keeps none.
        providers: How to import each; by default all that are installed.
    """
    known = {
        name: load
        for name, load in (known_providers() if providers is None else providers).items()
        if not wanted or name in wanted
    }
    kept = Cache(cache, demand)
    offers: list[Offer] = []
    refusals: list[Refusal] = []
    live: list[str] = []
    collected = _Beside(lambda: second_hand_offers(demand))
    heard = _ask_all(known, demand, environment)
    shipped = shipped_market(demand, known).offers
    for name in known:
        answer = heard[name] if name in heard else _late(name)
        if isinstance(answer, Refusal):
            refusals.append(answer)
            offers += kept.read(name) or _of(name, collected.result()) or _of(name, shipped)
        else:
            live.append(name)
            offers += answer
            kept.write(name, list(answer))
    return Market(offers=tuple(offers), refusals=tuple(refusals), live=tuple(live))


def _of(name: str, offers: Iterable[Offer]) -> list[Offer]:
    return [offer for offer in offers if offer.provider == name]


class _Beside:
    """Offers that come while vendors are asked; as a daemon, since nobody waits for them either."""

    def __init__(self, look: Callable[[], list[Offer]]) -> None:
        self._until_s = time.monotonic() + WAIT_S
        self._found: list[Offer] = []
        self._thread = threading.Thread(target=self._look, args=(look,), daemon=True)
        self._thread.start()

    def _look(self, look: Callable[[], list[Offer]]) -> None:
        self._found = look()

    def result(self) -> list[Offer]:
        """They; none if they are late."""
        self._thread.join(max(0.0, self._until_s - time.monotonic()))
        return self._found


def _ask_all(
    known: Mapping[str, Load], demand: Demand, environment: Mapping[str, str]
) -> dict[str, Answer]:
    """Answers by provider, of those that came in time."""
    answers: SimpleQueue[tuple[str, Answer]] = SimpleQueue()

    def ask(name: str, load: Load) -> None:
        answers.put((name, _ask(name, load, demand, environment)))

    until_s = time.monotonic() + WAIT_S
    for name, load in known.items():
        # As a daemon: the end of the program does not wait for a vendor either.
        threading.Thread(target=ask, args=(name, load), name=f"market-{name}", daemon=True).start()
    heard: dict[str, Answer] = {}
    with contextlib.suppress(Empty):
        while len(heard) < len(known):
            name, answer = answers.get(timeout=max(0.0, until_s - time.monotonic()))
            heard[name] = answer
    return heard


def _ask(name: str, load: Load, demand: Demand, environment: Mapping[str, str]) -> Answer:
    try:
        provider = load().connect(environment)
        try:
            return tuple(provider.offers(demand))
        finally:
            provider.close()
    except (UnusableError, ProviderError) as error:
        return Refusal(subject=name, reason=error.reason, remedy=error.remedy)
    except Exception as error:
        # A client of ours that fails must not take the other nine with it.
        log.exception("provider %s failed", name)
        reason = f"its client failed ({type(error).__name__})"
        return Refusal(subject=name, reason=reason, remedy="report it")


def _late(name: str) -> Refusal:
    late = ProviderError(name, Trouble.slow, f"nothing within {WAIT_S:g} s")
    return Refusal(subject=name, reason=late.reason, remedy=late.remedy)
