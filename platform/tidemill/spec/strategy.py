"""The nouns that say how state is spread over ranks, and what is traded for memory.

None of them changes the mathematics: a run may move from one to another, and is the same run.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from tidemill.spec.base import Spec, spec


@spec
class StrategySpec(Spec):
    """How parameters, gradients and moments are spread over ranks.

    Variants: `DdpSpec`, `Fsdp2Spec`, `DeepSpeedSpec`.
    """

    GROUP: ClassVar[str] = "strategy"

    @property
    def name(self) -> str:
        """Short name, as in `strategy=NAME`."""
        return type(self).__name__.removesuffix("Spec").lower()


@spec
class DdpSpec(StrategySpec):
    """Every rank holds everything (torch DistributedDataParallel).

    Attributes:
        bucket_mib: Gradient bucket size for overlapping reduction with backward.
    """

    bucket_mib: int = 25

    def __post_init__(self) -> None:
        self.require_at_least(1, "bucket_mib")


@spec
class Fsdp2Spec(StrategySpec):
    """Parameters, gradients and moments sharded per block (torch `fully_shard`).

    Attributes:
        reshard_after_forward: Free gathered parameters between forward and backward.
    """

    reshard_after_forward: bool = True


@spec
class DeepSpeedSpec(StrategySpec):
    """DeepSpeed ZeRO.

    Attributes:
        stage: 1 shards moments, 2 also gradients, 3 also parameters.
        bucket_elements: Elements per reduction or gather bucket; 0 sizes it from the model.
        overlap: Overlap reduction with backward; stages 2 and 3 on a GPU only.
    """

    stage: int
    bucket_elements: int = 0
    overlap: bool = False

    def __post_init__(self) -> None:
        self.require_between(1, 3, "stage")
        self.require_at_least(0, "bucket_elements")
        self.require(
            not self.overlap or self.stage > 1,
            "overlap",
            "ZeRO-1 cannot overlap when Tidemill owns the accumulation boundary",
            "use overlap=false or a higher stage",
        )

    @property
    def name(self) -> str:
        """`deepspeed_z1`, `deepspeed_z2` or `deepspeed_z3`."""
        return f"deepspeed_z{self.stage}"


class Recompute(StrEnum):
    """What backward recomputes instead of keeping."""

    none = "none"
    blocks = "blocks"


class Offload(StrEnum):
    """What stays in host memory, and visits the GPU only when it is needed there."""

    none = "none"
    optimizer = "optimizer"
    all = "all"


@spec
class MemorySpec(Spec):
    """What is traded for memory.

    Attributes:
        recompute: `blocks` keeps only each block's input and recomputes the rest in backward.
        offload: `optimizer` keeps masters and moments in host memory and updates them there
            (DeepSpeed), `all` also the parameters (FSDP2 and ZeRO-3).
    """

    GROUP: ClassVar[str] = "memory"

    recompute: Recompute = Recompute.none
    offload: Offload = Offload.none
