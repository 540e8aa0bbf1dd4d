"""Bill: every dollar that a run is expected to cost on some machines, term by term.

Terms are whole micro-dollars, so they add up exactly; shown in cents, they still do, because what
rounding leaves over goes to the terms that it took most from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from tidemill.plan.hazard import HOUR_S, Recovery, expected_losses
from tidemill.plan.offers import HOURS_PER_MONTH, Offer

MICRO = 1_000_000
MICRO_PER_CENT = 10_000
GIB_BITS = 8 * 2**30
MEGABIT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Haul:
    """What a run moves, keeps and waits for.

    Attributes:
        dataset_gib: Fetched by every machine.
        image_gib: Container image, fetched by every machine.
        disk_gib: Disk of a machine besides these two.
        checkpoint_gib: One checkpoint.
        saves: Checkpoints written by the whole run.
        kept: Checkpoints that are there at a time.
        home: Provider whose object storage has dataset and checkpoints; empty if it is elsewhere.
        home_region: Where there; empty if that does not matter.
        home_egress_usd_per_gib: What leaving that storage costs.
        home_usd_per_gib_month: What keeping something there costs.
    """

    dataset_gib: float = 0.0
    image_gib: float = 0.0
    disk_gib: float = 0.0
    checkpoint_gib: float = 0.0
    saves: int = 0
    kept: int = 1
    home: str = ""
    home_region: str = ""
    home_egress_usd_per_gib: float = 0.0
    home_usd_per_gib_month: float = 0.023

    def is_at_home(self, offer: Offer) -> bool:
        """Whether the storage is next to the machine, so that nothing is charged between them."""
        return offer.provider == self.home and self.home_region in {"", offer.region}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done by a group of one size.

    Attributes:
        world: Ranks, one on each GPU; each writes its share of every checkpoint.
        hours: Of training, losses not counted.
        haul: What is moved and kept.
        recovery: What the loss of a machine costs.
    """

    world: int
    hours: float
    haul: Haul
    recovery: Recovery


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a run is expected to cost, in micro-dollars.

    Attributes:
        gpus: Machines while they train.
        disk: Their disks.
        storage: Dataset and checkpoints in object storage.
        transfer_in: Dataset and image to the machines.
        transfer_out: Checkpoints from them.
        waiting: Machines while they start and fetch.
        losses: Machines that go: stalls, work done twice, others in their place.
    """

    gpus: int = 0
    disk: int = 0
    storage: int = 0
    transfer_in: int = 0
    transfer_out: int = 0
    waiting: int = 0
    losses: int = 0

    @property
    def terms(self) -> dict[str, int]:
        """By name, in micro-dollars."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> int:
        """Micro-dollars."""
        return sum(self.terms.values())

    @property
    def usd(self) -> float:
        """Dollars."""
        return self.total / MICRO

    def cents(self) -> dict[str, int]:
        """By name, in cents that add up to the total in cents."""
        return in_cents(self.terms)


def in_cents(terms: Mapping[str, int]) -> dict[str, int]:
    """Micro-dollars as cents whose sum is the sum, rounded half up."""
    whole = (sum(terms.values()) + MICRO_PER_CENT // 2) // MICRO_PER_CENT
    floors = {name: micro // MICRO_PER_CENT for name, micro in terms.items()}
    left = whole - sum(floors.values())
    most_cut = sorted(terms, key=lambda name: (-(terms[name] % MICRO_PER_CENT), name))
    return {name: floor + (name in most_cut[:left]) for name, floor in floors.items()}


def fetch_s(offer: Offer, haul: Haul) -> float:
    """Seconds from when a machine runs until image and dataset are on it."""
    mbps = offer.down_mbps or offer.rates.down_mbps
    return (haul.image_gib + haul.dataset_gib) * GIB_BITS / (mbps * MEGABIT)


def waiting_s(offer: Offer, haul: Haul) -> float:
    """Seconds for which a machine is paid before it works."""
    return 0.0 if offer.rates.free_boot else offer.rates.boot_s + fetch_s(offer, haul)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one machine adds to a bill, in dollars; all but `standing_h` simply add up.

    Attributes:
        gpus: See `Bill`.
        disk: See `Bill`.
        transfer_in: See `Bill`.
        transfer_out: See `Bill`.
        waiting: See `Bill`.
        losses: See `Bill`, without what others cost meanwhile.
        standing_h: Hours that all machines are expected to be paid for nothing because of this one.
    """

    gpus: float
    disk: float
    transfer_in: float
    transfer_out: float
    waiting: float
    losses: float
    standing_h: float

    @property
    def usd(self) -> float:
        """What adds up."""
        moved = self.transfer_in + self.transfer_out
        return self.gpus + self.disk + moved + self.waiting + self.losses


def make_share(offer: Offer, work: Work) -> Share:
    """What one machine adds to the bill of some work."""
    hours, haul, recovery = work.hours, work.haul, work.recovery
    step_s = offer.rates.step_s
    billed_h = math.ceil(round(hours * HOUR_S / step_s, 6)) * step_s / HOUR_S
    wait_h = waiting_s(offer, haul) / HOUR_S
    disk_gib = haul.disk_gib + haul.dataset_gib + haul.image_gib
    disk_usd_per_hour = disk_gib * offer.rates.disk_usd_per_gib_month / HOURS_PER_MONTH
    fetched_usd = _fetch_usd(offer, haul)
    written_gib = haul.checkpoint_gib * haul.saves * offer.gpus / work.world
    egress = 0.0 if haul.is_at_home(offer) else offer.rates.egress_usd_per_gib
    lost = expected_losses(offer, 1, hours)
    standing_h = (recovery.stall_s + recovery.redone_s) / HOUR_S
    another_usd = fetched_usd + offer.usd_per_hour * wait_h
    if recovery.replaced:
        standing_h += wait_h
        another_usd -= offer.usd_per_hour * wait_h  # it is one of those that stand
    return Share(
        gpus=offer.usd_per_hour * billed_h,
        disk=disk_usd_per_hour * (hours + wait_h),
        transfer_in=fetched_usd,
        transfer_out=written_gib * egress,
        waiting=offer.usd_per_hour * wait_h,
        losses=lost * another_usd,
        standing_h=lost * standing_h,
    )


def make_bill(machines: Sequence[tuple[Offer, int]], work: Work) -> Bill:
    """What some work costs on some machines.

    Args:
        machines: Offers, and how many of each; together they have `work.world` GPUs.
        work: What is to be done.
    """
    shares = [(make_share(offer, work), count) for offer, count in machines]
    usd_per_hour = sum(offer.usd_per_hour * count for offer, count in machines)
    standing_usd = usd_per_hour * sum(share.standing_h * count for share, count in shares)

    def added(name: str) -> float:
        return sum(getattr(share, name) * count for share, count in shares)

    return Bill(
        gpus=_micro(added("gpus")),
        disk=_micro(added("disk")),
        storage=_micro(storage_usd(work)),
        transfer_in=_micro(added("transfer_in")),
        transfer_out=_micro(added("transfer_out")),
        waiting=_micro(added("waiting")),
        losses=_micro(added("losses") + standing_usd),
    )


def storage_usd(work: Work) -> float:
    """What keeping dataset and checkpoints costs while the work goes on."""
    haul = work.haul
    held_gib = haul.dataset_gib + haul.checkpoint_gib * haul.kept
    return held_gib * haul.home_usd_per_gib_month * work.hours / HOURS_PER_MONTH


def _fetch_usd(offer: Offer, haul: Haul) -> float:
    """Of one machine: leaving where the data is, and coming in."""
    leaving = 0.0 if haul.is_at_home(offer) else haul.dataset_gib * haul.home_egress_usd_per_gib
    return leaving + (haul.dataset_gib + haul.image_gib) * offer.rates.ingress_usd_per_gib


def _micro(usd: float) -> int:
    return round(usd * MICRO)
