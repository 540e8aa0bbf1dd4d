"""Remedies: why no machines can be had for a run, and which single change would help.

A change is only named if it was tried and there were machines with it, so that nobody is sent from
one refusal to the next.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tidemill.errors import SpecError
from tidemill.plan.filters import sift
from tidemill.plan.forecast import GIB, Forecaster, roomy
from tidemill.plan.gpus import all_gpus
from tidemill.plan.memory import advice, fits
from tidemill.plan.mixes import Limits
from tidemill.plan.offers import Offer
from tidemill.plan.placement import Choice, Question, place
from tidemill.spec.placement import Network, PlacementSpec, Spot
from tidemill.spec.run import RunSpec

ENOUGH = 3
"""Changes to name."""
MARGIN = 1.1
"""Times the expected cost or time to ask for, so that the next answer is not as tight."""
KEY = re.compile(
    r"\b(?:placement|budget|scale|data|precision|memory|strategy|batch)(?:\.[a-z_]+)?\b"
)


def explain_nothing(forecaster: Forecaster, offers: Sequence[Offer]) -> SpecError:
    """What to tell a person for whose run there are no machines.

    Args:
        forecaster: Knows the run.
        offers: Everything that can be rented.
    """
    if not offers:
        remedy = "use live=false for the catalogue that Tidemill brings along, or other providers"
        return SpecError("placement.providers", "nobody offers any machine", remedy)
    kept, refused = sift(offers, forecaster.rule())
    tried = list(_helpful(forecaster, offers))
    if not kept:
        if roomy(forecaster, offers):
            return _too_large(forecaster, offers, tried)
        reasons = Counter((refusal.reason, refusal.remedy) for refusal in refused).most_common(3)
        told = "; ".join(f"{count} because: {reason}" for (reason, _), count in reasons)
        problem = f"all {len(offers)} offers are refused, {told}"
        keys = (key for (reason, remedy), _ in reasons for key in _keys(remedy) or _keys(reason))
        return SpecError("placement", problem, _or(tried) or _see(keys))
    return _past_limits(forecaster, kept, tried)


def _too_large(forecaster: Forecaster, offers: Sequence[Offer], tried: list[str]) -> SpecError:
    most = max((offer.gpu_mem_gib for offer in roomy(forecaster, offers)), default=0.0)
    need = min(forecaster.memory(world).total_bytes for world in forecaster.worlds) / GIB
    problem = f"a rank needs {need:,.1f} GiB, and the largest GPU that may be used has {most:g}"
    return SpecError("memory", problem, _or(tried) or "use a smaller model, or more workers")


def _past_limits(forecaster: Forecaster, kept: Sequence[Offer], tried: list[str]) -> SpecError:
    """There are machines, but not within the limits."""
    question, scale = forecaster.question(), forecaster.spec.scale
    limits, sizes = question.limits, f"{scale.least} to {scale.workers}"
    free = place(kept, replace(question, limits=Limits()))
    if free.best is None:
        refusal = free.refused[0]
        reason = f"no machines make a group of {sizes}"
        remedy = _or(tried) or _see(_keys(refusal.remedy))
        return SpecError("scale.workers", f"{reason}: {refusal.reason}", remedy)
    timely = free.choices
    if limits.hours:
        timely = place(kept, replace(question, limits=Limits(hours=limits.hours))).choices
    in_time = " in time" if limits.hours else ""
    if not timely:
        quick = _quickest(kept, question)
        key = "deadline"
        problem = f"the fastest machines, {quick.name}, take {quick.elapsed_h:,.1f} h"
    elif limits.usd and timely[0].bill.usd > limits.usd:
        key = "budget.max_total_usd"
        problem = f"the cheapest machines{in_time}, {timely[0].name}, "
        problem += f"cost {timely[0].bill.usd:,.2f} usd in all"
    elif limits.usd_per_hour and not _any(kept, question, replace(limits, usd=0.0, machines=0)):
        key = "budget.max_usd_per_hour"
        problem = f"the cheapest machines{in_time}, {timely[0].name}, "
        problem += f"cost {timely[0].usd_per_hour:,.2f} usd an hour"
    elif limits.machines and not _any(
        kept, question, Limits(hours=limits.hours, machines=limits.machines)
    ):
        key = "placement.max_nodes"
        problem = f"{limits.machines} in all make no group of {sizes}{in_time}"
    else:
        key = "budget"
        problem = "no machines keep to deadline, budget and placement.max_nodes at once"
    # The limit that is exceeded first; of the others at most as many as there is room for.
    raised = sorted(_raised(kept, question), key=lambda switch: not switch.startswith(f"{key}="))
    remedy = _or([*tried, *raised]) or _see(["deadline", "budget", "scale.workers"])
    return SpecError(key, problem, remedy)


def _raised(kept: Sequence[Offer], question: Question) -> Iterator[str]:
    """Limits that are high enough if all others stay as they are."""
    limits = question.limits
    if limits.hours and (late := _any(kept, question, replace(limits, hours=0.0))):
        yield f"deadline={math.ceil(MARGIN * late.elapsed_h)}h"
    if limits.usd and (cheap := _any(kept, question, replace(limits, usd=0.0))):
        yield f"budget.max_total_usd={math.ceil(MARGIN * cheap.bill.usd)}"
    if limits.usd_per_hour and (slow := _any(kept, question, replace(limits, usd_per_hour=0.0))):
        yield f"budget.max_usd_per_hour={math.ceil(slow.usd_per_hour)}"


def _any(kept: Sequence[Offer], question: Question, limits: Limits) -> Choice | None:
    """The cheapest machines within other limits; None if there are none."""
    return place(kept, replace(question, limits=limits)).best


def _quickest(kept: Sequence[Offer], question: Question) -> Choice:
    """The fastest machines of all sizes, those included that do not pay."""
    by_size = (replace(question, worlds=(world,), limits=Limits()) for world in question.worlds)
    choices = (choice for size in by_size for choice in place(kept, size).choices)
    return min(choices, key=lambda choice: choice.elapsed_h)


def _helpful(forecaster: Forecaster, offers: Sequence[Offer]) -> Iterator[str]:
    """Changes with which there are machines, the mildest first."""
    found = 0
    for switch, changed in _changes(forecaster, offers):
        with contextlib.suppress(SpecError):
            other = Forecaster(changed, forecaster.facts)
            usable, _ = sift(offers, other.rule())
            if usable and place(usable, other.question()).choices:
                yield switch
                found += 1
        if found == ENOUGH:
            return


def _changes(forecaster: Forecaster, offers: Sequence[Offer]) -> Iterator[tuple[str, RunSpec]]:
    """Single changes to a run; none that shows data to those who must not see them."""
    spec, scale = forecaster.spec, forecaster.spec.scale
    if names := {offer.gpu for offer in roomy(forecaster, offers)}:
        yield from _smaller(forecaster, names)
    if not scale.elastic and scale.workers > 1:
        yield "scale.min_workers=1", replace(spec, scale=replace(scale, min_workers=1))
    for change, loosened in _looser(spec.placement):
        yield f"placement.{change}", replace(spec, placement=loosened)
    if not spec.budget.allow_stale_prices:
        stale = replace(spec.budget, allow_stale_prices=True)
        yield "budget.allow_stale_prices=true", replace(spec, budget=stale)
    yield from _dearer(forecaster, offers)
    for workers in (2 * scale.workers, 4 * scale.workers):
        if spec.deadline and workers <= spec.batch.global_size:
            yield f"scale.workers={workers}", replace(spec, scale=replace(scale, workers=workers))


def _dearer(forecaster: Forecaster, offers: Sequence[Offer]) -> Iterator[tuple[str, RunSpec]]:
    """A higher price by the hour, as high as the cheapest machines that it now shuts out."""
    spec = forecaster.spec
    for key, field in (
        ("max_usd_per_hour", "usd_per_hour"),
        ("max_usd_per_gpu_hour", "usd_per_gpu_hour"),
    ):
        limit: float = getattr(spec.budget, key)
        free = replace(spec, budget=replace(spec.budget, **{key: 0.0}))
        usable, _ = sift(offers, Forecaster(free, forecaster.facts).rule())
        prices: list[float] = [getattr(offer, field) for offer in usable]
        above = [price for price in prices if price > limit]
        if limit and above:
            raised = math.ceil(min(above) * 100) / 100
            changed = replace(spec.budget, **{key: raised})
            yield f"budget.{key}={raised:g}", replace(spec, budget=changed)


def _looser(chosen: PlacementSpec) -> Iterator[tuple[str, PlacementSpec]]:
    """A placement without one of the conditions that a person set; trust is not among them."""
    if chosen.spot is not Spot.prefer:
        yield "spot=prefer", replace(chosen, spot=Spot.prefer)
    if not chosen.consumer:
        yield "consumer=true", replace(chosen, consumer=True)
    if chosen.network is not Network.public:
        yield "network=public", replace(chosen, network=Network.public)
    if chosen.gpus:
        yield "gpus=[]", replace(chosen, gpus=[])
    if chosen.regions:
        yield "regions=[]", replace(chosen, regions=[])
    if chosen.providers:
        yield "providers=[]", replace(chosen, providers=[])
    if chosen.min_reliability:
        yield "min_reliability=0", replace(chosen, min_reliability=0.0)
    if chosen.min_capability:
        yield "min_capability=0", replace(chosen, min_capability=0.0)
    if chosen.max_nodes:
        yield "max_nodes=0", replace(chosen, max_nodes=0)


def _smaller(forecaster: Forecaster, names: set[str]) -> Iterator[tuple[str, RunSpec]]:
    """What would make the run fit the largest of some GPUs."""
    largest = max((all_gpus()[name] for name in names), key=lambda gpu: gpu.memory_gib)
    world = max(forecaster.worlds)
    if fits(forecaster.memory(world), largest):
        return
    facts = forecaster.facts
    for found in advice(
        forecaster.spec, largest, world=world, vocab=facts.vocab, footprint=facts.footprint
    ):
        yield found.switch, found.spec


def _keys(text: str) -> list[str]:
    """Keys in what a refusal says, without the values, which were not tried."""
    return KEY.findall(text)


def _see(keys: Iterable[str]) -> str:
    """Where to look if none of the changes that were tried helps."""
    told = ", ".join(dict.fromkeys(keys))
    return f"see {told}" if told else "ask for less"


def _or(switches: Sequence[str]) -> str:
    """Switches that are ways to go on."""
    return f"use {' or '.join(switches[: ENOUGH + 1])}" if switches else ""
