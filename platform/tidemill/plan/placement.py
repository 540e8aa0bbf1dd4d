"""Placement: which machines, how many, and why these.

Every size that the run may have is tried on every set of machines that can train together, and the
cheapest mix of each is compared by what the whole run costs there. Nothing is estimated here: speed
comes from outside, prices from offers, and terms from the bill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tidemill.plan.bill import Bill, Haul, Work, make_bill, make_share, waiting_s
from tidemill.plan.hazard import HOUR_S, Recovery
from tidemill.plan.mixes import Limits, cheapest_mix, lone_mix
from tidemill.plan.offers import Offer, Refusal
from tidemill.spec.placement import Network

Machines = tuple[tuple[Offer, int], ...]
Hours = Callable[[str, int, Network | None], float | None]
"""Hours of training by name of the GPU, world and what connects machines, None for a single one;
None if it does not fit."""
Recoveries = Callable[[float, bool], Recovery]
"""What the loss of a machine costs, by hours of training and whether it is the only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be placed.

    Attributes:
        worlds: Sizes that the run may have.
        hours: Of training, see `Hours`.
        haul: What it moves and keeps.
        recovery: What the loss of a machine costs it, see `Recoveries`.
        network: Slowest connection between machines.
        limits: What may not be exceeded.
    """

    worlds: Sequence[int]
    hours: Hours
    haul: Haul
    recovery: Recoveries
    network: Network
    limits: Limits

    def work(self, world: int, hours: float, *, alone: bool) -> Work:
        """What is to be done by a group, which may be on a single machine."""
        recovery = self.recovery(hours, alone)
        return Work(world=world, hours=hours, haul=self.haul, recovery=recovery)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Machines for a run.

    Attributes:
        machines: Offers, and how many of each.
        world: Ranks.
        hours: Of training, losses not counted.
        elapsed_h: From the first machine to the last step, with what losses are expected to cost.
        bill: What it is expected to cost.
    """

    machines: Machines
    world: int
    hours: float
    elapsed_h: float
    bill: Bill

    @property
    def usd_per_hour(self) -> float:
        """Price of all machines."""
        return sum(offer.usd_per_hour * count for offer, count in self.machines)

    @property
    def name(self) -> str:
        """Machines, for a person."""
        return " + ".join(f"{count} x {offer.name}" for offer, count in self.machines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The answer.

    Attributes:
        choices: Cheapest first: the best on each set of machines that can train together, and the
            best of each offer alone.
        refused: Offers that no mix within the limits can use, and why.
    """

    choices: tuple[Choice, ...]
    refused: tuple[Refusal, ...]

    @property
    def best(self) -> Choice | None:
        """The cheapest; None if nothing is possible."""
        return self.choices[0] if self.choices else None


def place(offers: Sequence[Offer], question: Question) -> Placement:
    """Find the cheapest machines for a run among offers that have passed every filter."""
    found: dict[Machines, Choice] = {}
    for group in _groups(offers, question):
        _note(found, _best(group, question))
    # Offers by identity: telling two apart by their fields would take most of the time.
    used = {id(offer) for machines in found for offer, _ in machines}
    refused: list[Refusal] = []
    for offer in offers:
        alone = _best([offer], question)
        if alone is not None:
            _note(found, alone)
        elif id(offer) not in used:
            reason, remedy = _why_not(offer, question)
            refused.append(Refusal(subject=offer.name, reason=reason, remedy=remedy))
    ranked = sorted(
        found.values(), key=lambda choice: (choice.bill.total, choice.elapsed_h, choice.name)
    )
    return Placement(choices=tuple(ranked), refused=tuple(refused))


def explain(winner: Choice, loser: Choice) -> str:
    """Why one choice is not the first: what it costs more, the largest terms first."""
    more = {
        name: micro - winner.bill.terms[name]
        for name, micro in loser.bill.terms.items()
        if micro != winner.bill.terms[name]
    }
    extra = loser.bill.total - winner.bill.total
    if not extra:
        return f"as cheap, and takes {loser.elapsed_h - winner.elapsed_h:.1f} h longer"
    largest = sorted(more.items(), key=lambda term: -abs(term[1]))[:3]
    terms = ", ".join(f"{name.replace('_', ' ')} {_signed(micro)}" for name, micro in largest)
    return f"{_signed(extra)}: {terms}"


def _signed(micro: int) -> str:
    usd = micro / 1e6
    return f"{'+' if usd >= 0 else '-'}${abs(usd):,.2f}"


def _note(found: dict[Machines, Choice], choice: Choice | None) -> None:
    if choice is not None:
        found.setdefault(choice.machines, choice)


def _groups(offers: Iterable[Offer], question: Question) -> Iterator[list[Offer]]:
    """Sets of machines that can train together: of one provider and region, fast enough."""
    places: dict[tuple[str, str], list[Offer]] = {}
    for offer in offers:
        if offer.network.rank >= question.network.rank:
            places.setdefault((offer.provider, offer.region), []).append(offer)
    yield from places.values()


def _best(group: Sequence[Offer], question: Question) -> Choice | None:
    """The cheapest mix of a group over all sizes."""
    found = (_mix(group, world, question) for world in question.worlds)
    return min(
        (choice for choice in found if choice is not None),
        key=lambda choice: (choice.bill.total, choice.elapsed_h),
        default=None,
    )


def _mix(group: Sequence[Offer], world: int, question: Question) -> Choice | None:
    """The cheapest mix of one size. A group is as fast as its slowest GPUs, so each is tried."""
    best: Choice | None = None
    for machines, hours in _candidates(group, world, question):
        alone = sum(count for _, count in machines) == 1
        choice = _choice(machines, question.work(world, hours, alone=alone))
        if best is None or choice.bill.total < best.bill.total:
            best = choice
    return best


def _candidates(
    group: Sequence[Offer], world: int, question: Question
) -> Iterator[tuple[Machines, float]]:
    """The cheapest machines for each speed that the group can have, and hours at that speed."""
    for offer in group:
        hours = question.hours(offer.gpu, world, None) if offer.gpus == world else None
        if hours is not None:
            work = question.work(world, hours, alone=True)
            if (mix := lone_mix(offer, work, question.limits)) is not None:
                yield mix, hours
    usable = [
        offer
        for offer in group
        if offer.gpus < world and offer.network.rank >= question.network.rank
    ]
    if not usable:
        return
    slowest = min((offer.network for offer in usable), key=lambda network: network.rank)
    speeds = {gpu: question.hours(gpu, world, slowest) for gpu in {o.gpu for o in usable}}
    for hours in sorted({hours for hours in speeds.values() if hours is not None}):
        fast = [offer for offer in usable if _within(speeds[offer.gpu], hours)]
        work = question.work(world, hours, alone=False)
        if len(fast) == 1:
            mix = lone_mix(fast[0], work, question.limits)
        else:
            mix = cheapest_mix(fast, work, question.limits)
        if mix is not None:
            yield mix, hours


def _within(hours: float | None, most: float) -> bool:
    return hours is not None and hours <= most


def _choice(machines: Machines, work: Work) -> Choice:
    ordered = tuple(sorted(machines, key=lambda item: (-item[0].gpus * item[1], item[0].name)))
    standing_h = sum(make_share(offer, work).standing_h * count for offer, count in ordered)
    wait_h = max(waiting_s(offer, work.haul) for offer, _ in ordered) / HOUR_S
    return Choice(
        machines=ordered,
        world=work.world,
        hours=work.hours,
        elapsed_h=work.hours + wait_h + standing_h,
        bill=make_bill(ordered, work),
    )


def _why_not(offer: Offer, question: Question) -> tuple[str, str]:
    """Why no mix has this offer; the first thing that stands in the way."""
    least, most = min(question.worlds), max(question.worlds)
    if offer.gpus > most:
        return f"{offer.gpus} GPUs, and the run has use for {most}", f"scale.workers={offer.gpus}"
    if offer.network.rank < question.network.rank and offer.gpus < least:
        return (
            f"its machines share no {question.network} network, and one has too few GPUs",
            f"placement.network={offer.network}, or a smaller scale.min_workers",
        )
    if offer.available is not None and offer.available * offer.gpus < least:
        return f"{offer.available} left, and the run needs {least} GPUs", "scale.min_workers"
    free = replace(question, limits=Limits())
    choice = _best([offer], free)
    if choice is None:
        return "no number of such machines gives a size that the run may have", "scale.min_workers"
    return _over(choice, question.limits)


def _over(choice: Choice, limits: Limits) -> tuple[str, str]:
    """Which limit the cheapest way to use an offer exceeds."""
    if limits.usd and choice.bill.usd > limits.usd:
        return f"${choice.bill.usd:,.2f} in all", f"budget.max_total_usd={choice.bill.usd:.2f}"
    if limits.usd_per_hour and choice.usd_per_hour > limits.usd_per_hour:
        usd = choice.usd_per_hour
        return f"${usd:,.2f} an hour", f"budget.max_usd_per_hour={usd:.2f}"
    if limits.hours and choice.elapsed_h > limits.hours:
        return f"{choice.elapsed_h:,.1f} hours", f"deadline={choice.elapsed_h:.1f}h"
    return "exceeds a limit at every size", "raise budget.* or deadline"
