"""Speed: how long a step takes on machines that nobody has tried yet, between two bounds.

A step is as slow as the rank with most samples. Its arithmetic runs at a share of the GPU's peak,
its optimizer at the speed of the GPU's memory, and what ranks exchange at that of the slowest link
between them; part of that hides behind arithmetic. How much of each is a guess with a range, so an
estimate is three numbers. One measured step replaces the most important guess.

Sources of shares: 21-46 % of peak in large runs (PaLM, arXiv 2204.02311, table 3); 44-52 % with
recomputation counted (Narayanan et al., arXiv 2104.04473, table 1); by our count of operations, 27
and 35 % for GPT-2 small on 8 A100 (nanoGPT's README: 600,000 steps in 4 days; debtirthasaha.github
.io/blog/2026/gpt2-124m: 127 steps a minute), 14 % of it uncompiled and 67 % in fp32 (Karpathy,
"Let's reproduce GPT-2": 300 and 1000 ms a step of 16 x 1,024 tokens on one A100). Nothing here is
compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tidemill.errors import SpecError, TidemillError
from tidemill.plan.activations import FP32, footprint_of, low_bytes
from tidemill.plan.batch import make_batch_plan
from tidemill.plan.costs import rules_of
from tidemill.plan.gpus import Gpu
from tidemill.plan.traffic import GIGA, LATENCY_S, PCIE_GB_S, Range, link_bytes_s, make_traffic
from tidemill.spec.placement import Network
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, Offload, Recompute
from tidemill.spec.training import GptSpec, PrecisionKind

TERA, HOUR_S = 1e12, 3600.0

LOW_PRECISION = Range(0.15, 0.33, 0.5)
"""Share of the peak of tensor cores."""
FULL_PRECISION = Range(0.4, 0.6, 0.8)
"""Share of the peak of fp32 units. torch's default rounds no fp32 input to TF32, and we keep it."""
KERNELS = 80
"""Kernels of one block, forward and backward, that nothing fuses; counted for our GPT."""
LAUNCH_S = Range(2e-5, 1e-5, 5e-6)
"""Seconds that torch takes to launch one, however little it has to do; assumed."""
SPREAD = 0.1
"""How far a stated share may be off."""
BANDWIDTH = Range(0.6, 0.75, 0.9)
"""Share of a memory's peak that streaming kernels reach."""
HOST_GB_S = Range(5.0, 15.0, 50.0)
"""Memory of the host, as far as one rank's cores reach it."""
OPTIMIZER_PASSES = 23
"""Times that a step reads or writes 4 bytes of a trained element: clipping 3, torch's foreach AdamW
20. Fewer for SGD, whose step is short anyway."""
HIDDEN = Range(0.0, 0.5, 1.0)
"""Share of what could hide behind arithmetic that does; half for want of measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """Seconds of one optimizer step. Terms are the likely ones; their sum is the likely step.

    Attributes:
        low_s: If everything goes well.
        likely_s: What to plan with.
        high_s: If nothing does.
        compute_s: Forward and backward.
        memory_s: Optimizer, and weights for each micro-batch.
        exchange_s: What ranks wait for each other's bytes.
        efficiency: Share of the GPU's peak that is assumed.
        flops: Floating-point operations of the rank with most samples, recomputed ones included.
    """

    low_s: float
    likely_s: float
    high_s: float
    compute_s: float
    memory_s: float
    exchange_s: float
    efficiency: float
    flops: float


def estimate_step(
    spec: RunSpec,
    *,
    gpu: Gpu,
    world: int,
    per_machine: int,
    network: Network | None,
    vocab: int,
    parameters: int | None = None,
    efficiency: float = 0.0,
) -> StepEstimate:
    """Estimate a step of a run.

    Args:
        spec: The run.
        gpu: What each rank has.
        world: Ranks.
        per_machine: How many of them share a machine.
        network: What connects machines; None if there is only one.
        vocab: Number of distinct tokens.
        parameters: Elements of a model of the user's own; all are taken to be multiplied with
            every token, and its attention not to count.
        efficiency: Share of the peak, if it is known; 0 takes the usual one.

    Raises:
        SpecError: The GPU cannot compute in the run's precision, or nothing connects the machines.
    """
    parameters = parameters or footprint_of(spec, vocab=vocab).parameters
    kind, between = spec.precision.kind, network if world > per_machine else None
    peak = gpu.tflops[kind] * TERA
    if not peak:
        raise SpecError("precision.kind", f"{gpu.name} has no units for {kind}", "use fp16")
    if world > per_machine and network is None:
        raise SpecError("placement.network", f"nothing connects {world} ranks", "name a network")
    batch = spec.batch
    plan = make_batch_plan(batch.global_size, batch.micro_size, world, fixed=spec.bitwise)
    samples = rules_of(spec).load_at(world)
    flops = samples * sample_flops(spec, parameters)
    traffic = make_traffic(spec, world=world, slots=plan.accumulate, parameters=parameters)
    updated = parameters / (1 if isinstance(spec.strategy, DdpSpec) else world)
    shares = FULL_PRECISION if kind is PrecisionKind.fp32 else LOW_PRECISION
    if efficiency:
        shares = Range((1 - SPREAD) * efficiency, efficiency, (1 + SPREAD) * efficiency)
    cases: list[tuple[float, float, float]] = []
    # What was measured has them in it.
    launches = 0 if efficiency else plan.accumulate * _blocks(spec) * KERNELS
    for share, bandwidth, host, link, hidden, launch_s in zip(
        shares, BANDWIDTH, HOST_GB_S, link_bytes_s(gpu, between), HIDDEN, LAUNCH_S, strict=True
    ):
        compute_s = max(flops / (peak * share), launches * launch_s)
        exchange_s = traffic.seconds(world, link, LATENCY_S[between])
        cases.append(
            (
                compute_s,
                plan.accumulate
                * _slot_bytes(spec, parameters)
                / (bandwidth * gpu.memory_gb_s * GIGA)
                + _update_s(spec, updated, gpu, bandwidth, host),
                max(0.0, exchange_s - hidden * traffic.hideable * compute_s),
            )
        )
    worst, likely, best = cases
    return StepEstimate(
        low_s=sum(best),
        likely_s=sum(likely),
        high_s=sum(worst),
        compute_s=likely[0],
        memory_s=likely[1],
        exchange_s=likely[2],
        efficiency=shares.likely,
        flops=flops,
    )


def sample_flops(spec: RunSpec, parameters: int) -> float:
    """Floating-point operations of forward and backward of one sample.

    6 per weight and token, and 12 per layer, width and pair of tokens for attention, of which half
    are masked and skipped. Recomputing blocks repeats their forward, a third of that.

    Source: Kaplan et al., arXiv 2001.08361, section 2.1; Narayanan et al., arXiv 2104.04473,
    appendix, which counts masked pairs too.
    """
    tokens, again = spec.batch.sequence, spec.memory.recompute is Recompute.blocks
    if not isinstance(spec.model, GptSpec):
        return (8 if again else 6) * parameters * tokens
    layers, width = spec.model.layers, spec.model.width
    blocks = (6 * 12 * width**2 + 6 * width * tokens) * layers * tokens
    rest = 6 * (parameters - layers * 12 * width**2) * tokens
    return rest + blocks * (4 / 3 if again else 1)


def _blocks(spec: RunSpec) -> int:
    """Blocks of a model, with both its ends as one; of a model of the user's own, that alone."""
    return 1 + (spec.model.layers if isinstance(spec.model, GptSpec) else 0)


def _slot_bytes(spec: RunSpec, parameters: int) -> float:
    """Of weights and gradients through the GPU's memory for one slot, beside its activations.

    Forward and backward read weights three times in all, autocast casts them first, and backward
    adds to gradients.
    """
    low = low_bytes(spec.precision.kind)
    casts = FP32 + low if isinstance(spec.strategy, DdpSpec) and low != FP32 else 0
    return (3 * low + casts + low + 2 * FP32) * parameters


def _update_s(
    spec: RunSpec, elements: float, gpu: Gpu, bandwidth: float, host_gb_s: float
) -> float:
    """Seconds of the optimizer, over the bus and back if its state is on the host."""
    held = FP32 * elements
    if spec.memory.offload is Offload.none:
        return OPTIMIZER_PASSES * held / (bandwidth * gpu.memory_gb_s * GIGA)
    bus_s = 2 * held / (bandwidth * PCIE_GB_S[gpu.pcie] * GIGA)
    return OPTIMIZER_PASSES * held / (host_gb_s * GIGA) + bus_s


def measured_efficiency(
    spec: RunSpec,
    step_s: float,
    *,
    gpu: Gpu,
    world: int,
    per_machine: int,
    network: Network | None,
    vocab: int,
    parameters: int | None = None,
) -> float:
    """The share of the peak at which `estimate_step` would find a measured step likely.

    Args:
        spec: The run that was measured.
        step_s: Seconds of one of its steps.
        gpu: See `estimate_step`, as for all that follow.
        world: Ranks.
        per_machine: How many of them share a machine.
        network: What connects machines.
        vocab: Number of distinct tokens.
        parameters: Elements of a model of the user's own.

    Raises:
        TidemillError: No GPU of that kind could be so fast.
    """

    def likely_s(efficiency: float) -> float:
        return estimate_step(
            spec,
            gpu=gpu,
            world=world,
            per_machine=per_machine,
            network=network,
            vocab=vocab,
            parameters=parameters,
            efficiency=efficiency,
        ).likely_s

    if step_s < likely_s(1.0):
        raise TidemillError(f"a step of {step_s:g} s is faster than {gpu.name} can be")
    low, high = 1e-9, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if likely_s(middle) > step_s else (low, middle)
    return high
