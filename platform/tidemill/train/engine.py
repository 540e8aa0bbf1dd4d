"""Engine: the one seam between the loop and how a strategy spreads parameters over ranks.

Every engine takes loss *sums* and a weight that is the same on all ranks (one over the global count
of valid targets), so gradients are sums too, and no engine ever averages averages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tidemill.errors import SpecError
from tidemill.spec.progress import Fragment, Piece, State, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec, Fsdp2Spec
from tidemill.train.model import apply_recompute, takes_keys

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one slot, on the device.

    Attributes:
        inputs_BS: int64 tokens.
        targets_BS: int64 next tokens, `IGNORE` where there is nothing to learn.
        keys_B: int64 index of each sample in the run.
    """

    inputs_BS: Tensor
    targets_BS: Tensor
    keys_B: Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one optimizer step, equal on all ranks.

    Attributes:
        applied: False if a non-finite gradient anywhere made every rank skip the step.
        grad_norm: Global gradient norm before clipping; not finite if the step was skipped.
    """

    applied: bool
    grad_norm: float


class Engine(Protocol):
    """A model under one strategy."""

    def accumulate(self, batch: Batch, weight: float, *, last: bool) -> Tensor:
        """Forward and backward of one slot.

        Args:
            batch: The slot's samples.
            weight: Factor of the loss sum, the same on every rank and slot of the step.
            last: Whether this is the rank's last slot of the step.

        Returns:
            The unweighted loss sum of the slot, fp32, detached.
        """
        ...

    def step(self, lr: float) -> Outcome:
        """Clip, update with learning rate `lr` and clear gradients, or skip on all ranks."""
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Loss sum of one slot without gradients; every rank must call it equally often."""
        ...

    def state(self) -> State:
        """The pieces this rank owns, as views of live memory; all ranks' tile the state.

        Only `step` changes them, but for buffers, which a forward pass may change.
        """
        ...

    def wanted(self) -> State:
        """The pieces this rank needs in order to go on, as views to be filled in place."""
        ...

    def restore(self, filled: State) -> None:
        """Make what `wanted` returned, now filled, the state of the run."""
        ...


class LossModel(nn.Module):
    """A model with its loss: maps a batch to one loss sum.

    Loss and model share one `forward` so that sharding engines see a single module whose output is
    a scalar, and logits never leave it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap `model`, whose forward gives logits."""
        super().__init__()
        self.model = model
        self.keyed = takes_keys(model)

    def forward(self, inputs_BS: Tensor, targets_BS: Tensor, keys_B: Tensor) -> Tensor:
        """Sum of the cross entropy over valid targets, fp32."""
        extra = {"keys_B": keys_B} if self.keyed else {}
        logits_BSV: Tensor = self.model(inputs_BS, **extra)
        return F.cross_entropy(
            logits_BSV.float().flatten(0, 1),
            targets_BS.flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        )


def build_engine(spec: RunSpec, model: nn.Module, world: World) -> Engine:
    """Put `model` under the strategy of `spec`; the process group must be up.

    Args:
        spec: The run.
        model: Fresh module on the CPU, in fp32, with equal weights on all ranks.
        world: This rank's place.

    Raises:
        SpecError: The model does not fit the strategy.
    """
    apply_recompute(model, spec.memory.recompute)
    match spec.strategy:
        case DdpSpec() if spec.bitwise:
            from tidemill.train.strategy.bitwise import BitwiseEngine

            return BitwiseEngine(spec, spec.strategy, model, world)
        case DdpSpec():
            from tidemill.train.strategy.ddp import DdpEngine

            return DdpEngine(spec, spec.strategy, model, world)
        case Fsdp2Spec():
            from tidemill.train.strategy.fsdp2 import Fsdp2Engine

            return Fsdp2Engine(spec, spec.strategy, model, world)
        case DeepSpeedSpec():
            # DeepSpeed is imported by the runs that use it: it costs every other run 0.4 s.
            from tidemill.train.strategy.deepspeed import DeepSpeedEngine

            return DeepSpeedEngine(spec, spec.strategy, model, world)
        case _:
            raise SpecError("strategy", f"{spec.strategy.name} has no engine", "use strategy=ddp")


def owned_share(tensor: Tensor, world: World) -> Fragment:
    """This rank's balanced share of a tensor that every rank holds whole."""
    flat = tensor.detach().reshape(-1)
    share = -(-flat.numel() // world.size)
    start = min(flat.numel(), world.rank * share)
    return _fragment(tensor, start, flat[start : start + share])


def whole(tensor: Tensor) -> Fragment:
    """All of a tensor, as a view."""
    return _fragment(tensor, 0, tensor.detach().view(-1))


def _fragment(tensor: Tensor, start: int, flat: Tensor) -> Fragment:
    pieces = (Piece(start, flat),) if flat.numel() else ()
    return Fragment(tuple(tensor.shape), dtype_name(tensor.dtype), pieces)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to the state: those that `state_dict` would keep."""
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, buffer
