"""Rows of a plan's page: what the arithmetic found, in the words and units that people read."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from tidemill.plan.bill import Bill
from tidemill.plan.decision import decide
from tidemill.plan.forecast import GIB, Forecast, Forecaster, checkpoint_bytes
from tidemill.plan.gpus import Gpu
from tidemill.plan.hazard import HOUR_S
from tidemill.plan.memory import advice
from tidemill.plan.placement import Choice, explain
from tidemill.providers.market import Market
from tidemill.report.forecast import ChoiceRow, GpuRow, WorldRow
from tidemill.report.quantities import count_noun, show_bytes, show_count, show_duration
from tidemill.spec.placement import Network
from tidemill.spec.strategy import Offload, Recompute

ONE_MACHINE = 8
"""GPUs that machines have at most."""


def facts(forecaster: Forecaster) -> Iterator[tuple[str, str]]:
    """What a run is, by what is said of it."""
    spec, model = forecaster.spec, forecaster.model
    step_tokens = spec.batch.global_size * spec.batch.sequence
    made = f"{show_count(model.parameters)} parameters, vocabulary of {forecaster.facts.vocab:,}"
    yield "model", made + (", traced" if forecaster.facts.footprint else "")
    tokens, whole = show_count(step_tokens), show_count(spec.steps * step_tokens)
    yield "steps", f"{spec.steps:,} of {tokens} tokens, {whole} in all"
    memory = [spec.precision.kind.value]
    memory += ["recomputing blocks"] if spec.memory.recompute is Recompute.blocks else []
    memory += [f"offload {spec.memory.offload}"] if spec.memory.offload is not Offload.none else []
    yield "strategy", f"{spec.strategy.name}, {', '.join(memory)}"
    haul = forecaster.haul()
    size = show_bytes(checkpoint_bytes(spec, model))
    yield "checkpoints", f"{haul.saves} of {size}, {haul.kept} kept in {spec.storage}"
    fetched = haul.dataset_gib + haul.image_gib
    yield "to fetch", f"{fetched:.3g} GiB by each machine, {haul.image_gib:.3g} of them image"
    limits = [
        f"{key}={value:g}"
        for key, value in (
            ("max_total_usd", spec.budget.max_total_usd),
            ("max_usd_per_hour", spec.budget.max_usd_per_hour),
            ("max_usd_per_gpu_hour", spec.budget.max_usd_per_gpu_hour),
        )
        if value
    ] + ([f"deadline={spec.deadline}"] if spec.deadline else [])
    if limits:
        yield "limits", ", ".join(limits)


def world_row(forecaster: Forecaster, world: int) -> WorldRow:
    """A run at one number of workers."""
    batch, estimate = forecaster.batch(world), forecaster.memory(world)
    slots = [batch.slots(rank) for rank in range(world)]
    return WorldRow(
        workers=world,
        samples=max(sum(slot.size for slot in own) for own in slots),
        micro_batches=batch.accumulate,
        micro_size=max(slot.size for own in slots for slot in own),
        need_gib=estimate.total_bytes / GIB,
        need_terms_gib={name: size / GIB for name, size in estimate.terms.items()},
        moment=estimate.moment,
    )


def gpu_row(forecaster: Forecaster, gpu: Gpu) -> GpuRow:
    """Told for the most workers, in one machine if there are such machines."""
    spec, known, world = forecaster.spec, forecaster.facts, forecaster.worlds[-1]
    fitting = [world for world in forecaster.worlds if forecaster.fits(gpu.name, world)]
    if not fitting:
        switches = advice(spec, gpu, world=world, vocab=known.vocab, footprint=known.footprint)
        step, remedy = None, switches[0].switch if switches else ""
    else:
        network = (
            None
            if world <= ONE_MACHINE
            else max(spec.placement.network, Network.private, key=lambda network: network.rank)
        )
        step, remedy = forecaster.step(gpu.name, world, network), ""
    tokens = spec.batch.global_size * spec.batch.sequence
    return GpuRow(
        gpu=gpu.name,
        memory_gib=gpu.memory_gib,
        fits_from=min(fitting, default=None),
        workers=world,
        step_s=step and step.likely_s,
        low_s=step and step.low_s,
        high_s=step and step.high_s,
        tokens_per_s=step and tokens / step.likely_s,
        hours=step and spec.steps * step.likely_s / HOUR_S,
        remedy=remedy,
    )


def choice_row(forecaster: Forecaster, choices: Sequence[Choice], choice: Choice) -> ChoiceRow:
    """Machines that a run could be on."""
    low_hours, high_hours = forecaster.span(choice)
    cents = choice.bill.cents()
    return ChoiceRow(
        machines=choice.name,
        workers=choice.world,
        usd_per_hour=choice.usd_per_hour,
        hours=choice.elapsed_h,
        low_hours=low_hours,
        high_hours=high_hours,
        usd=sum(cents.values()) / 100,
        terms_usd={name: cent / 100 for name, cent in cents.items()},
        losses=forecaster.losses(choice),
        why="" if choice is choices[0] else explain(choices[0], choice),
    )


def decision(forecaster: Forecaster, choices: Sequence[Choice]) -> str:
    """What to rent now if there is a deadline; empty if there is none."""
    if not choices or math.isinf(forecaster.spec.deadline_s):
        return ""
    return f"as of now: {decide(forecaster, choices).reason}"


def notes(forecaster: Forecaster, found: Forecast, market: Market) -> Iterator[str]:
    """What to know of a plan."""
    spec, best = forecaster.spec, found.placement.best
    yield _prices(market, forecaster.facts.now_s)
    if not spec.scale.gpus_per_worker:
        yield "each worker is taken to have one GPU; here, scale.gpus_per_worker is 0"
    if "://" not in spec.storage:
        yield f"storage={spec.storage} is on this machine; machines elsewhere need a URI"
    if known := forecaster.facts.efficiency:
        yield f"steps are those of {known:.0%} of a GPU's peak, within a tenth"
    else:
        yield (
            "nothing was measured: a step is between the two times told, by the peak of the GPU "
            "and usual shares of it; one measured step makes it narrow (measured_s=, measured_on=)"
        )
    if best is None:
        return
    _, high_hours = forecaster.span(best)
    slow_usd = best.bill.usd + best.usd_per_hour * max(0.0, high_hours - best.elapsed_h)
    most_usd = spec.budget.max_total_usd
    if most_usd and slow_usd > most_usd:
        yield (
            f"at the slow end it would cost {slow_usd:,.2f} usd: it would then save and stop "
            f"before {most_usd:,.2f} are spent"
        )


def _prices(market: Market, now_s: float) -> str:
    """Where the prices are from."""
    old = [offer for offer in market.offers if not offer.live]
    fresh = len(market.offers) - len(old)
    parts = [f"{count_noun(fresh, 'offer')} asked for just now"] if market.live else []
    if old:
        dates = [offer.fetched_at for offer in old if offer.fetched_at]
        ages = [show_duration(now_s - date) for date in (max(dates), min(dates))] if dates else []
        age = f", {' to '.join(dict.fromkeys(ages))} old" if ages else ", undated"
        parts.append(
            f"{count_noun(len(old), 'offer')} from the catalogue that Tidemill brings{age}"
        )
    return f"prices: {' and '.join(parts)}" if parts else "nobody offers anything"


def commands(forecaster: Forecaster, best: Choice, typed: Sequence[str]) -> Iterator[str]:
    """What to type to run it on some machines."""
    spec = forecaster.spec
    yield "# rent these, install Tidemill on them, and begin with the one that leads"
    head = True
    for offer, count in best.machines:
        # A vendor's words, some of them a stranger's: a line break would end the comment.
        name = " ".join(offer.name.split())
        label = f"tidemill.io/usd-per-hour={offer.usd_per_hour:g},tidemill.io/tier={offer.tier}"
        if offer.rates.step_s > 1:
            label += f",tidemill.io/billing-step-s={offer.rates.step_s:g}"
        if head:
            yield f"ray start --head --labels {label}  # {name}"
        if count > 1 or not head:
            many = count_noun(count - head, "machine")
            yield f"ray start --address HEAD:6379 --labels {label}  # {many}, {name}"
        head = False
    wanted = {"scale.workers": str(best.world)}
    if not spec.scale.gpus_per_worker:
        wanted["scale.gpus_per_worker"] = "1"
    if aside := max(_aside_usd(best.bill), spec.budget.set_aside_usd):
        wanted["budget.set_aside_usd"] = f"{aside:.2f}"
    kept = [word for word in typed if word.lstrip("+").partition("=")[0] not in wanted]
    words = [*kept, *(f"{key}={value}" for key, value in wanted.items())]
    yield (
        "ray job submit --address http://HEAD:8265 --runtime-env conf/runtime_env.yaml -- "
        f"python jobs/train.py {shlex.join(words)}"
    )


def _aside_usd(bill: Bill) -> float:
    """Dollars that no machine's price shows, rounded up to cents."""
    hidden = bill.disk + bill.storage + bill.transfer_in + bill.transfer_out
    return math.ceil(hidden / 10_000) / 100
