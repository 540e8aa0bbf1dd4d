"""Mixes: the cheapest machines for a world of a given size, exactly.

All costs of a machine but one simply add up: what the others cost while one is lost is the price of
all times the hours that all stand still. Both factors are sums again. So a partial mix is described
by a few sums, each of which can only make things worse, and one that is no better than another in
any of them is dropped. What is left at the end contains the cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidemill.plan.bill import Work, make_share, storage_usd, waiting_s
from tidemill.plan.hazard import HOUR_S
from tidemill.plan.offers import Offer

ROUNDING = 1e-9
"""Share of a sum by which another order of its terms may change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What no mix may exceed; 0 sets no limit.

    Attributes:
        usd_per_hour: Price of all machines together.
        usd: Of the whole run.
        hours: From the first machine to the last step.
        machines: How many there may be.
    """

    usd_per_hour: float = 0.0
    usd: float = 0.0
    hours: float = 0.0
    machines: int = 0


@dataclass(frozen=True, slots=True)
class _Unit:
    """One kind of machine in sums."""

    offer: Offer
    most: int
    usd: float
    usd_per_hour: float
    standing_h: float
    wait_h: float


@dataclass(frozen=True, slots=True)
class _Partial:
    """Some machines in sums: additive cost, hourly price, hours that all stand, longest wait."""

    usd: float = 0.0
    usd_per_hour: float = 0.0
    standing_h: float = 0.0
    wait_h: float = 0.0
    machines: int = 0
    picks: tuple[tuple[int, int], ...] = ()

    @property
    def sums(self) -> tuple[float, ...]:
        """What no other may exceed to be as good, those first that tell most apart."""
        return (self.usd, self.usd_per_hour, self.standing_h, self.wait_h, float(self.machines))

    @property
    def total_usd(self) -> float:
        return self.usd + self.usd_per_hour * self.standing_h


def cheapest_mix(
    offers: Sequence[Offer], work: Work, limits: Limits
) -> tuple[tuple[Offer, int], ...] | None:
    """The machines on which some work costs least.

    Args:
        offers: What may be combined.
        work: What is to be done; its hours are those of the slowest of `offers`.
        limits: What may not be exceeded.

    Returns:
        Offers and how many of each; None if there is no such mix.
    """
    world, fixed_usd = work.world, storage_usd(work)
    units = sorted(_prune(_units(offers, work, limits), world), key=_usd_per_gpu)
    # What is cheapest by the GPU as far as it goes is a ceiling for all mixes; and what is still
    # missing from one comes from kinds further on, none of which costs less by the GPU.
    ceiling = _greedy_usd(units, work, limits) * (1 + ROUNDING)
    floors = [*map(_usd_per_gpu, units), math.inf][1:]
    table: list[list[_Partial]] = [[] for _ in range(world + 1)]
    table[0] = [_Partial()]
    for number, (unit, floor) in enumerate(zip(units, floors, strict=True)):
        for have in range(world - unit.offer.gpus, -1, -1):
            for partial in table[have]:
                for count in range(1, min(unit.most, (world - have) // unit.offer.gpus) + 1):
                    gpus = have + count * unit.offer.gpus
                    grown = _grown(partial, unit, number, count)
                    missing_usd = (world - gpus) * floor if gpus < world else 0.0
                    if grown.total_usd + missing_usd <= ceiling and _is_within(
                        grown, work.hours, fixed_usd, limits
                    ):
                        _keep(table[gpus], grown)
    best = min(table[world], key=lambda found: (found.total_usd, found.machines), default=None)
    if best is None or not best.picks:
        return None
    return tuple((units[number].offer, count) for number, count in best.picks)


def lone_mix(offer: Offer, work: Work, limits: Limits) -> tuple[tuple[Offer, int], ...] | None:
    """As `cheapest_mix` of one offer, without a search."""
    count, rest = divmod(work.world, offer.gpus)
    units = [] if rest else _units([offer], work, limits)
    if not units or count > units[0].most:
        return None
    grown = _grown(_Partial(), units[0], 0, count)
    within = _is_within(grown, work.hours, storage_usd(work), limits)
    return ((offer, count),) if within else None


def _greedy_usd(units: Iterable[_Unit], work: Work, limits: Limits) -> float:
    """What a mix costs that takes one kind after the other; infinite if that is none."""
    mix, missing = _Partial(), work.world
    for number, unit in enumerate(units):
        count = min(unit.most, missing // unit.offer.gpus)
        if count:
            mix = _grown(mix, unit, number, count)
            missing -= count * unit.offer.gpus
    if missing or not _is_within(mix, work.hours, storage_usd(work), limits):
        return math.inf
    return mix.total_usd


def _usd_per_gpu(unit: _Unit) -> float:
    return unit.usd / unit.offer.gpus


def _units(offers: Iterable[Offer], work: Work, limits: Limits) -> list[_Unit]:
    found: list[_Unit] = []
    for offer in offers:
        fitting = work.world // offer.gpus
        most = min(fitting, fitting if offer.available is None else offer.available)
        if limits.machines:
            most = min(most, limits.machines)
        if most > 0:
            share = make_share(offer, work)
            found.append(
                _Unit(
                    offer=offer,
                    most=most,
                    usd=share.usd,
                    usd_per_hour=offer.usd_per_hour,
                    standing_h=share.standing_h,
                    wait_h=waiting_s(offer, work.haul) / HOUR_S,
                )
            )
    return found


def _prune(units: list[_Unit], world: int) -> list[_Unit]:
    """Leave out machines that enough others of their size are better than in everything."""
    kept: list[_Unit] = []
    for unit in sorted(units, key=_order):
        better = sum(
            other.most
            for other in kept
            if other.offer.gpus == unit.offer.gpus
            and other.usd <= unit.usd
            and other.usd_per_hour <= unit.usd_per_hour
            and other.standing_h <= unit.standing_h
            and other.wait_h <= unit.wait_h
        )
        if better < world // unit.offer.gpus:
            kept.append(unit)
    return kept


def _order(unit: _Unit) -> tuple[float, float, float, str]:
    return unit.usd, unit.usd_per_hour, unit.standing_h, unit.offer.name


def _grown(partial: _Partial, unit: _Unit, number: int, count: int) -> _Partial:
    return _Partial(
        usd=partial.usd + count * unit.usd,
        usd_per_hour=partial.usd_per_hour + count * unit.usd_per_hour,
        standing_h=partial.standing_h + count * unit.standing_h,
        wait_h=max(partial.wait_h, unit.wait_h),
        machines=partial.machines + count,
        picks=(*partial.picks, (number, count)),
    )


def _is_within(partial: _Partial, hours: float, fixed_usd: float, limits: Limits) -> bool:
    elapsed_h = hours + partial.wait_h + partial.standing_h
    return (
        (not limits.usd_per_hour or partial.usd_per_hour <= limits.usd_per_hour)
        and (not limits.usd or partial.total_usd + fixed_usd <= limits.usd)
        and (not limits.hours or elapsed_h <= limits.hours)
        and (not limits.machines or partial.machines <= limits.machines)
    )


def _keep(found: list[_Partial], new: _Partial) -> None:
    """Add a partial mix, unless one is as good in everything; drop those that it is better than."""
    if any(all(a <= b for a, b in zip(old.sums, new.sums, strict=True)) for old in found):
        return
    found[:] = [
        old for old in found if not all(b <= a for a, b in zip(old.sums, new.sums, strict=True))
    ]
    found.append(new)
