"""Memory: what one rank of a run needs of its GPU, term by term, and what would make it fit.

Each strategy is estimated as this package runs it, not as its paper describes it: DDP keeps a copy
of the gradients in its buckets, ZeRO-1 keeps all of them until the step, and FSDP2 accumulates
whole local gradients where a step has several slots, of which bitwise mode keeps several sets. The
peak of a micro-batch is compared with the optimizer's step; the larger one is the estimate. What
stays on the host is not counted.

Sources: Rajbhandari et al., "ZeRO", arXiv 1910.02054, section 3 (the terms). Who holds what is from
DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `stage3.py`) and torch 2.13 (`distributed/fsdp/
_fully_shard`, `optim/adam.py`), and was measured storage by storage on a CPU, but for offload and
overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from tidemill.errors import SpecError
from tidemill.plan.activations import FP32, Footprint, footprint_of, largest_slot, low_bytes
from tidemill.plan.batch import make_batch_plan
from tidemill.plan.gpus import Gpu
from tidemill.plan.traffic import MIB, REUSED, count_nodes
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec, Fsdp2Spec, Offload, Recompute
from tidemill.spec.training import AdamWSpec, OptimSpec, SgdSpec

GIB = 2**30
CONTEXT_BYTES = GIB
"""CUDA context and loaded kernels, about half of it; workspaces of cuBLAS; buffers of NCCL."""
FRAGMENTATION = 0.05
"""Share of all tensors that torch's allocator is taken to waste between them."""
SAFETY = 0.1
"""Share of a GPU's nominal memory that is not planned with. The driver keeps some (of 16 GiB, a T4
with ECC shows 14.6; of 24, an L4 22.5; of 80, an H100 79.6), the rest is for what is not known."""
PARTITIONED = 2
"""ZeRO stage from which on each rank has only its share of gradients."""
SMALLEST_BUCKET, LARGEST_BUCKET = 5_000_000, 500_000_000
"""Elements, as in `tidemill.train.strategy.deepspeed_setup`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank at the moment when they are most.

    Attributes:
        moment: `micro-batch` while activations are most, or `step` when they are gone.
        weights: Parameters that stay, in the format they stay in.
        gradients: Of parameters.
        masters: fp32 parameters besides those.
        moments: The optimizer's.
        buffers: Buckets, gathered parameters, and what the optimizer needs for a moment.
        activations: What backward needs, with what autocast copies.
        logits: And their gradients.
        fixed: CUDA context and fragmentation.
    """

    moment: str
    weights: int = 0
    gradients: int = 0
    masters: int = 0
    moments: int = 0
    buffers: int = 0
    activations: int = 0
    logits: int = 0
    fixed: int = 0

    @property
    def terms(self) -> dict[str, int]:
        """Bytes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    @property
    def total_bytes(self) -> int:
        """Bytes of the rank."""
        return sum(self.terms.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change that makes a run fit.

    Attributes:
        switch: As the user types it, e.g. `memory=recompute`.
        spec: The run with it.
        estimate: What it then needs.
    """

    switch: str
    spec: RunSpec
    estimate: MemoryEstimate


def estimate_memory(
    spec: RunSpec, *, world: int, vocab: int, footprint: Footprint | None = None
) -> MemoryEstimate:
    """Estimate what a rank of a run needs.

    Args:
        spec: The run.
        world: Ranks.
        vocab: Number of distinct tokens.
        footprint: Of the model at `batch.micro_size`; our GPT needs none, it has a formula.

    Raises:
        SpecError: The model is the user's own, and there is no footprint.
    """
    samples = largest_slot(spec, world)
    alike = replace(spec, batch=replace(spec.batch, micro_size=samples))
    model = footprint or footprint_of(alike, vocab=vocab)
    slot = model.activations.of(samples)
    (gradients, buffers), *updates = _passing(spec, model, world)
    held = _lasting(spec, model, world)
    backward = replace(
        held,
        gradients=gradients,
        buffers=buffers,
        activations=slot.peak_bytes - slot.logits_bytes,
        logits=slot.logits_bytes,
    )
    moments = [backward] + [
        replace(held, moment="step", gradients=gradients, buffers=buffers)
        for gradients, buffers in updates
    ]
    most = max(moments, key=lambda moment: moment.total_bytes)
    return replace(most, fixed=CONTEXT_BYTES + int(FRAGMENTATION * most.total_bytes))


def _lasting(spec: RunSpec, model: Footprint, world: int) -> MemoryEstimate:
    """What is there all the time. Shares are of the rank that has most."""
    low, whole = low_bytes(spec.precision.kind), model.parameters
    share, trained = -(-whole // world), -(-model.trained // world)
    on_gpu = spec.memory.offload is Offload.none
    moments = FP32 * moments_of(spec.optim)
    match spec.strategy:
        case DdpSpec():
            weights, masters, moments = FP32 * whole, 0, moments * model.trained
        case Fsdp2Spec():
            weights, masters, moments = FP32 * share * on_gpu, 0, moments * trained * on_gpu
        case DeepSpeedSpec(stage=3):
            weights = low * share * (spec.memory.offload is not Offload.all)
            # In fp32, ZeRO-3's parameters are their own masters; stages 1 and 2 copy them.
            masters = FP32 * trained * on_gpu * (low != FP32)
            moments = moments * trained * on_gpu
        case DeepSpeedSpec():
            weights = low * whole
            masters, moments = FP32 * trained * on_gpu, moments * trained * on_gpu
        case other:
            raise SpecError("strategy", f"nobody knows what {other.name} holds", "use another")
    return MemoryEstimate(moment="micro-batch", weights=weights, masters=masters, moments=moments)


def _passing(spec: RunSpec, model: Footprint, world: int) -> list[tuple[int, int]]:
    """Gradients and buffers, in bytes: in a micro-batch, then at each moment of the step."""
    low, trained = low_bytes(spec.precision.kind), model.trained
    share = -(-trained // world)
    batch = spec.batch
    plan = make_batch_plan(batch.global_size, batch.micro_size, world, fixed=spec.bitwise)
    several, on_gpu = plan.accumulate > 1, spec.memory.offload is Offload.none
    # torch's foreach AdamW takes the root of a whole moment at once; SGD copies what decays.
    root = FP32 if isinstance(spec.optim, AdamWSpec) or spec.optim.weight_decay else 0
    match spec.strategy:
        case DdpSpec(bucket_mib=mib) if spec.bitwise:
            whole = FP32 * trained
            bucket = min(whole, max(mib * MIB, FP32 * model.largest))
            most, left = count_nodes(spec, world)
            # Of each bucket, nodes are laid out, sorted by receiver and exchanged; sums pile up.
            sent = 0 if world == 1 else bucket * left * (3 if left > 1 else 2)
            return [
                (whole * (most - 1), 0),
                (whole * most, 0),
                (whole * left, sent + whole * (world > 1)),
                (whole, root * trained),
            ]
        case DdpSpec():
            buckets = FP32 * trained
            return [(several * FP32 * trained, buckets), (FP32 * trained, buckets + root * trained)]
        case Fsdp2Spec(reshard_after_forward=again):
            # A block is gathered while another computes, into a flat buffer and out of it; later,
            # one's fp32 gradients are scattered while another's are sent. A CPU, which waits for
            # each, holds half of either. Slots before the last leave whole fp32 gradients behind.
            rest = model.parameters - model.blocks * model.block
            gathered = low * (2 * rest + 4 * model.block if again else model.parameters)
            left = FP32 * trained if several else 0
            scattered = (left or FP32 * share * on_gpu, gathered + 2 * FP32 * model.block)
            update = (FP32 * share * on_gpu, root * share * on_gpu)
            return [(left, gathered), scattered, update]
        case DeepSpeedSpec(stage=stage, overlap=overlap):
            bucket = low * _bucket(spec.strategy, model) * (2 if overlap else 1)
            partition, update = low * share * on_gpu, (FP32 + root) * share * on_gpu
            if stage == 1:
                reduced = (low * trained, partition + bucket)
                return [(low * trained * several, bucket), reduced, (partition, update)]
            if stage == PARTITIONED:
                return [(partition * several, bucket), (partition, update)]
            # In fp32, ZeRO-3 keeps a second set of its share of gradients.
            partition *= 2 if low == FP32 else 1
            gathered = low * min(model.parameters, REUSED)
            return [(partition, gathered + 2 * bucket), (partition, update + bucket)]
        case other:
            raise SpecError("strategy", f"nobody knows what {other.name} holds", "use another")


def _bucket(strategy: DeepSpeedSpec, model: Footprint) -> int:
    """Elements, as `tidemill.train.strategy.deepspeed_setup` sizes it."""
    whole = model.parameters
    usual = max(model.largest, whole // 10, min(whole, SMALLEST_BUCKET))
    return strategy.bucket_elements or min(LARGEST_BUCKET, usual)


def moments_of(spec: OptimSpec) -> int:
    """How many an optimizer keeps of each trained element."""
    match spec:
        case AdamWSpec():
            return 2
        case SgdSpec(momentum=momentum):
            return int(momentum > 0)
        case _:
            return 0


def fits(estimate: MemoryEstimate, gpu: Gpu) -> bool:
    """Whether a GPU has that much with `SAFETY` to spare."""
    return estimate.total_bytes <= (1 - SAFETY) * gpu.memory_gib * GIB


def advice(
    spec: RunSpec, gpu: Gpu, *, world: int, vocab: int, footprint: Footprint | None = None
) -> tuple[Advice, ...]:
    """Single changes that make a run fit, the one that costs least first; none if it fits as it is.

    Smaller micro-batches do the same work in more pieces, sharding adds what ranks exchange,
    recomputation a third of the blocks' arithmetic, and state on the host makes each step wait for
    it. Recomputation of a model of the user's own has to be traced, so it is not tried; under
    another strategy it is taken to need what was traced.

    Args:
        spec: The run.
        gpu: What each rank has.
        world: Ranks.
        vocab: Number of distinct tokens.
        footprint: Of a model of the user's own.
    """
    if fits(estimate_memory(spec, world=world, vocab=vocab, footprint=footprint), gpu):
        return ()
    found: dict[str, Advice] = {}
    for way, switch, change in _changes(spec, traced=footprint is not None):
        try:
            changed = replace(spec, **change)
        except SpecError:  # the strategy or the mode has no such thing
            continue
        estimate = estimate_memory(changed, world=world, vocab=vocab, footprint=footprint)
        if way not in found and fits(estimate, gpu):
            found[way] = Advice(switch=switch, spec=changed, estimate=estimate)
    return tuple(found.values())


def _changes(spec: RunSpec, *, traced: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Ways, cheapest first, with the switch and what it sets; of each way, little before much."""
    batch, memory, strategy = spec.batch, spec.memory, spec.strategy
    size = batch.micro_size
    while size > 1 and not spec.bitwise:
        size //= 2
        changed = replace(batch, micro_size=size)
        yield "micro-batch", f"batch.micro_size={size}", {"batch": changed}
    if not isinstance(strategy, Fsdp2Spec):
        yield "fsdp2", "strategy=fsdp2", {"strategy": Fsdp2Spec()}
    elif not strategy.reshard_after_forward:
        yield "fsdp2", "strategy.reshard_after_forward=true", {"strategy": Fsdp2Spec()}
    if not (isinstance(strategy, DeepSpeedSpec) and strategy.stage > PARTITIONED):
        yield "zero", "strategy=deepspeed_z3", {"strategy": DeepSpeedSpec(stage=3)}
    # memory=NAME would set both keys of the group.
    if memory.recompute is Recompute.none and not traced:
        switch = "memory=recompute" if memory.offload is Offload.none else "memory.recompute=blocks"
        yield "recompute", switch, {"memory": replace(memory, recompute=Recompute.blocks)}
    for offload in list(Offload)[list(Offload).index(memory.offload) + 1 :]:
        named = memory.recompute is Recompute.none and offload is Offload.optimizer
        switch = "memory=offload" if named else f"memory.offload={offload}"
        yield "offload", switch, {"memory": replace(memory, offload=offload)}
