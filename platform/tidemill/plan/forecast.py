"""Forecast: what a run will need, take and cost on the machines there are.

It joins what the other modules of this room know: how a step is dealt, what fits, how fast a step
is, what machines cost with everything that comes with them. Nothing is asked of anybody here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tidemill.plan.activations import FP32, Footprint, footprint_of
from tidemill.plan.batch import BatchPlan, make_batch_plan
from tidemill.plan.bill import Haul
from tidemill.plan.costs import rules_of
from tidemill.plan.filters import Rule, sift
from tidemill.plan.gpus import Gpu, all_gpus
from tidemill.plan.hazard import HOUR_S, Recovery, expected_losses
from tidemill.plan.memory import MemoryEstimate, estimate_memory, fits, moments_of
from tidemill.plan.mixes import Limits
from tidemill.plan.offers import Offer, Refusal
from tidemill.plan.placement import Choice, Placement, Question, place
from tidemill.plan.speed import StepEstimate, estimate_step
from tidemill.spec.placement import Network, Tier
from tidemill.spec.run import RunSpec

GIB = 2**30
STALL_S = 30.0
"""Seconds from a loss to the next step. Measured on CPUs: 2 with a spare, 12 without; NCCL and
larger states take longer, and nobody has measured them here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where dataset and checkpoints are.

    Attributes:
        provider: Whose object storage; empty if nobody's who rents out machines.
        egress_usd_per_gib: What leaving it costs.
        usd_per_gib_month: What keeping something there costs.
    """

    provider: str = ""
    egress_usd_per_gib: float = 0.0
    usd_per_gib_month: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known besides the run's configuration.

    Attributes:
        vocab: Number of distinct tokens.
        dataset_gib: Size of the dataset.
        home: Where it and the checkpoints are.
        footprint: Of the model, if it was traced.
        efficiency: Share of a GPU's peak that the run is known to reach; 0 if it is not known.
        now_s: Seconds since the epoch.
    """

    vocab: int
    dataset_gib: float = 0.0
    home: Home = field(default_factory=Home)
    footprint: Footprint | None = None
    efficiency: float = 0.0
    now_s: float


class Forecaster:
    """Answers about one run; remembers what it has worked out.

    Args:
        spec: The run. Each of its workers is taken to have one GPU.
        facts: What else is known.

    Raises:
        SpecError: The model is the user's own, and was not traced.
    """

    def __init__(self, spec: RunSpec, facts: Facts) -> None:
        self.spec, self.facts = spec, facts
        self.model = facts.footprint or footprint_of(spec, vocab=facts.vocab)
        self.worlds = tuple(range(spec.scale.least, spec.scale.workers + 1))
        # As many seconds as there are kinds and sizes, not offers.
        self.memory = functools.cache(self._memory)
        self.step = functools.cache(self._step)
        self.fits = functools.cache(self._fits)

    def batch(self, world: int) -> BatchPlan:
        """How a step is dealt over so many ranks."""
        batch = self.spec.batch
        return make_batch_plan(batch.global_size, batch.micro_size, world, fixed=self.spec.bitwise)

    def haul(self) -> Haul:
        """What the run moves and keeps."""
        spec, home = self.spec, self.facts.home
        kept, every = spec.checkpoint, spec.checkpoint.every_steps
        marked = spec.steps // kept.keep_every_steps if kept.keep_every_steps else 0
        return Haul(
            dataset_gib=self.facts.dataset_gib,
            image_gib=spec.placement.image_gib,
            disk_gib=spec.placement.disk_gib,
            checkpoint_gib=checkpoint_bytes(spec, self.model) / GIB,
            saves=math.ceil(spec.steps / every) if every else 1,
            kept=kept.keep_last + kept.keep_best + marked,
            home=home.provider,
            home_egress_usd_per_gib=home.egress_usd_per_gib,
            home_usd_per_gib_month=home.usd_per_gib_month,
        )

    def recovery(self, hours: float, alone: bool) -> Recovery:  # noqa: FBT001
        """What the loss of a machine costs, see `Recoveries`."""
        rules = rules_of(self.spec)
        step_s = hours * HOUR_S / self.spec.steps
        if alone:
            redone = (rules.save_every_steps or self.spec.steps) / 2
        elif rules.replicated:
            redone = 0.0
        else:
            every = rules.copy_every_steps or rules.near_every_steps or rules.save_every_steps
            redone = (every or self.spec.steps) / 2
        waits = alone or not self.spec.scale.elastic
        return Recovery(stall_s=STALL_S, redone_s=redone * step_s, replaced=waits)

    def hours(self, name: str, world: int, network: Network | None) -> float | None:
        """Hours of training, see `placement.Hours`."""
        gpu = all_gpus().get(name)
        if gpu is None or not self.fits(name, world):
            return None
        return self.spec.steps * self.step(name, world, network).likely_s / HOUR_S

    def rule(self) -> Rule:
        """What every machine has to be."""
        spec = self.spec
        tier = max(spec.placement.tier, spec.data.tier, key=lambda tier: tier.rank)
        return Rule(
            placement=spec.placement,
            budget=spec.budget,
            tier=Tier(tier),
            precision=spec.precision.kind,
            fits=lambda gpu: any(self.fits(gpu.name, world) for world in self.worlds),
            now_s=self.facts.now_s,
        )

    def question(self) -> Question:
        """What is to be placed."""
        spec = self.spec
        return Question(
            worlds=self.worlds,
            hours=self.hours,
            haul=self.haul(),
            recovery=self.recovery,
            network=spec.placement.network,
            limits=Limits(
                usd_per_hour=spec.budget.max_usd_per_hour,
                usd=spec.budget.max_total_usd,
                hours=0.0 if math.isinf(spec.deadline_s) else spec.deadline_s / HOUR_S,
                machines=spec.placement.max_nodes,
            ),
        )

    def span(self, choice: Choice) -> tuple[float, float]:
        """Hours from the first machine to the last step, if all goes well, and if nothing does."""
        steps = [self.step_of(offer, choice) for offer, _ in choice.machines]
        slowest = max(steps, key=lambda step: step.likely_s)
        around = choice.elapsed_h - choice.hours
        low, high = (
            self.spec.steps * second / HOUR_S + around for second in (slowest.low_s, slowest.high_s)
        )
        return low, high

    def step_of(self, offer: Offer, choice: Choice) -> StepEstimate:
        """A step as the GPUs of one offer take it, in the group that was chosen."""
        return self.step(offer.gpu, choice.world, network_of(choice))

    def losses(self, choice: Choice) -> float:
        """Machines that the run can expect to lose."""
        hours = choice.hours
        return sum(expected_losses(offer, count, hours) for offer, count in choice.machines)

    def _memory(self, world: int) -> MemoryEstimate:
        return estimate_memory(
            self.spec, world=world, vocab=self.facts.vocab, footprint=self.facts.footprint
        )

    def _fits(self, name: str, world: int) -> bool:
        gpu = all_gpus()[name]
        return bool(gpu.tflops[self.spec.precision.kind]) and fits(self.memory(world), gpu)

    def _step(self, name: str, world: int, network: Network | None) -> StepEstimate:
        return estimate_step(
            self.spec,
            gpu=all_gpus()[name],
            world=world,
            per_machine=world if network is None else 1,
            network=network,
            vocab=self.facts.vocab,
            parameters=self.model.parameters,
            efficiency=self.facts.efficiency,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What was found.

    Attributes:
        placement: Machines, cheapest first.
        refused: Offers that may not or cannot be used, and why.
        gpus: Kinds of GPU among all offers that pass whatever is not about memory.
    """

    placement: Placement
    refused: tuple[Refusal, ...]
    gpus: tuple[Gpu, ...]


def forecast(forecaster: Forecaster, offers: Sequence[Offer]) -> Forecast:
    """Find machines for a run.

    Args:
        forecaster: Knows the run.
        offers: What can be rented.
    """
    rule = forecaster.rule()
    kept, refused = sift(offers, rule)
    names = {offer.gpu for offer in roomy(forecaster, offers)}
    placement = place(kept, forecaster.question())
    return Forecast(
        placement=placement,
        refused=(*refused, *placement.refused),
        gpus=tuple(
            sorted(
                (gpu for name, gpu in all_gpus().items() if name in names),
                key=lambda gpu: (gpu.memory_gib, gpu.tflops[forecaster.spec.precision.kind]),
            )
        ),
    )


def roomy(forecaster: Forecaster, offers: Iterable[Offer]) -> list[Offer]:
    """Offers that could be used if memory were no question."""

    def fits_all(_: Gpu) -> bool:
        return True

    return sift(offers, replace(forecaster.rule(), fits=fits_all))[0]


def checkpoint_bytes(spec: RunSpec, model: Footprint) -> int:
    """Bytes of one checkpoint: fp32 masters of all weights, and moments of the trained ones."""
    return FP32 * (model.parameters + moments_of(spec.optim) * model.trained)


def network_of(choice: Choice) -> Network | None:
    """The slowest network between the machines of a choice; None if there is only one."""
    if sum(count for _, count in choice.machines) == 1:
        return None
    return min((offer.network for offer, _ in choice.machines), key=lambda network: network.rank)
