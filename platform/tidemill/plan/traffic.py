"""Traffic: the bytes that ranks exchange in a step under each strategy, and the links they take.

Bytes are what each rank passes on if the collective runs in a ring, which is also the least that
any algorithm moves: of n bytes over W ranks, a gather or a scatter costs n (W - 1) / W and an
all-reduce twice that (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tidemill.plan.activations import FP32, low_bytes
from tidemill.plan.batch import make_batch_plan
from tidemill.plan.gpus import Gpu
from tidemill.spec.placement import Network
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec, Fsdp2Spec
from tidemill.spec.training import GptSpec

GIGA = 1e9
MIB = 2**20


class Range(NamedTuple):
    """The worst, the likely and the best of something that makes a step fast."""

    worst: float
    likely: float
    best: float


NVLINK = Range(0.5, 0.75, 0.85)
"""Share of one direction that collectives reach: of 450 GB/s, 376 (NVIDIA/nccl, issue 1264)."""
PCIE = Range(0.2, 0.5, 0.8)
"""The same of 16 lanes; cards that refuse peer access go through host memory, others have 8."""
PCIE_GB_S: Mapping[int, float] = {3: 15.75, 4: 31.5, 5: 63.0, 6: 121.0}
"""16 lanes, one direction, by generation (PCI-SIG)."""
NETWORK_GBIT_S: Mapping[Network, Range] = {
    Network.public: Range(0.1, 0.5, 1.0),
    Network.private: Range(5.0, 25.0, 100.0),
    Network.fabric: Range(400.0, 1600.0, 3200.0),
}
"""Of a machine, 1e9 bits a second each way. Fabric: EFA of a p4d 400 and of a p5 3,200 (AWS), ND
A100 v4 1,600 (Azure). Private: 10 to 100 of a g5 (AWS). Public: what hosts on Vast.ai state."""
LATENCY_S: Mapping[Network | None, float] = {
    None: 2e-5,
    Network.fabric: 4e-5,
    Network.private: 3e-4,
    Network.public: 3e-2,
}
"""Of one message, by the slowest link that it crosses; orders of magnitude."""
REUSED = 500_000_000
"""Elements at the end of a model that ZeRO-3 still holds when backward wants them: it releases what
is not used again within 1e9 (`stage3_max_reuse_distance`), and backward goes the same way back."""
BACKWARD = 2 / 3
"""Share of forward and backward that is backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a rank exchanges in one step.

    Attributes:
        ring_bytes: Passed on to the next rank of a ring.
        messages: Collectives.
        hideable: Share of forward and backward during which the exchange can go on.
    """

    ring_bytes: float
    messages: int
    hideable: float

    def seconds(self, world: int, bytes_s: float, latency_s: float) -> float:
        """How long it takes, a collective's steps growing as the logarithm of the world."""
        waits = 2 * math.ceil(math.log2(world)) * self.messages if world > 1 else 0
        return self.ring_bytes / bytes_s + waits * latency_s


def make_traffic(spec: RunSpec, *, world: int, slots: int, parameters: int) -> Traffic:
    """What a run exchanges in a step, as its strategy does it.

    DDP reduces fp32 gradients once a step. FSDP2 gathers low-precision parameters for each slot,
    again for backward unless it kept them, and scatters fp32 gradients once a step. ZeRO-1 reduces
    low-precision gradients once a step, ZeRO-2 those of each slot, by all-reduce as well, and both
    gather parameters after the step. ZeRO-3 gathers and scatters for each slot. Bitwise mode
    scatters what ranks could not add up by themselves and gathers the sums.

    Args:
        spec: The run.
        world: Ranks.
        slots: Most that one rank runs per step.
        parameters: Elements of all weights; frozen ones count as trained.
    """
    low, ring = low_bytes(spec.precision.kind), (world - 1) / world * parameters
    blocks = spec.model.layers + 1 if isinstance(spec.model, GptSpec) else 1
    match spec.strategy:
        case DdpSpec(bucket_mib=mib):
            _, nodes = count_nodes(spec, world) if spec.bitwise else (1, 1)
            return Traffic(
                ring_bytes=(nodes + 1) * FP32 * ring,
                messages=math.ceil(FP32 * parameters / (mib * MIB)),
                hideable=0.0 if spec.bitwise else BACKWARD / slots,
            )
        case Fsdp2Spec(reshard_after_forward=again):
            gathers = slots * (2 if again else 1)
            return Traffic(
                ring_bytes=(gathers * low + FP32) * ring,
                messages=(gathers + 1) * blocks,
                hideable=1.0,
            )
        case DeepSpeedSpec(stage=3, overlap=overlap):
            gathered = 2 - min(1.0, REUSED / parameters)
            return Traffic(
                ring_bytes=slots * (gathered + 1) * low * ring,
                messages=3 * slots * blocks,
                hideable=float(overlap),
            )
        case DeepSpeedSpec(stage=stage, overlap=overlap):
            reduced = slots if stage > 1 else 1
            return Traffic(
                ring_bytes=(2 * reduced + 1) * low * ring,
                messages=10 * (reduced + 1),
                hideable=BACKWARD * overlap,
            )
        case _:
            return Traffic(ring_bytes=2 * FP32 * ring, messages=1, hideable=0.0)


def count_nodes(spec: RunSpec, world: int) -> tuple[int, int]:
    """Sets of gradients that a rank has in bitwise mode: most at a time, and when slots are done.

    There is one for each node of the tree over a step's slots that it cannot add to another.

    Args:
        spec: The run.
        world: Ranks.
    """
    batch = spec.batch
    plan = make_batch_plan(batch.global_size, batch.micro_size, world, fixed=True)
    held = [_nodes(range(plan.count), plan.numbers(rank)) for rank in range(world)]
    return max(most for most, _ in held), max(left for _, left in held)


def _nodes(tree: range, slots: range) -> tuple[int, int]:
    """The same of the part of a tree over the slots `tree`, for a rank that runs `slots`."""
    if tree.stop <= slots.start or slots.stop <= tree.start:
        return 0, 0
    if slots.start <= tree.start and tree.stop <= slots.stop:
        return (len(tree) - 1).bit_length() + 1, 1
    middle = len(tree) // 2
    most, left = _nodes(tree[:middle], slots)
    more, right = _nodes(tree[middle:], slots)
    return max(most, left + more), left + right


def link_bytes_s(gpu: Gpu, network: Network | None) -> Range:
    """Bytes a second that each rank can pass on if all do at once, in a ring.

    Boards have NVLink to all others of a machine; the bridges of cards join two, and providers do
    not say where there is one, so cards are taken to use PCIe. Between machines, a ring passes the
    network of each once, however many ranks it has.

    Args:
        gpu: What each rank has.
        network: What connects machines; None if there is only one.
    """
    on_board = "SXM" in gpu.name or not gpu.capability
    if on_board and gpu.nvlink_gb_s:
        inside = Range(*(share * gpu.nvlink_gb_s / 2 * GIGA for share in NVLINK))
    else:
        inside = Range(*(share * PCIE_GB_S[gpu.pcie] * GIGA for share in PCIE))
    if network is None:
        return inside
    pairs = zip(inside, NETWORK_GBIT_S[network], strict=True)
    return Range(*(min(here, there / 8 * GIGA) for here, there in pairs))
