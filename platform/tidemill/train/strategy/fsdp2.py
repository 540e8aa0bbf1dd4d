"""FSDP2: parameters, gradients and moments sharded along their first dimension, block by block.

The optimizer updates this rank's shards as plain tensors: torch plans every operation on a DTensor
before it does it, which after a change of the group took longer than all the rest of a first step.

Gradients are summed, not averaged, with `set_force_sum_reduction_for_comms` set first: otherwise
torch picks a pre-multiplied sum, which gloo refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.utils import get_total_norm

from tidemill.spec.progress import Fragment, Piece, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import Fsdp2Spec, Offload
from tidemill.train.engine import LossModel, dtype_name
from tidemill.train.model import blocks_of
from tidemill.train.precision import DTYPES
from tidemill.train.strategy.torch_engine import TorchEngine

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

CLIP_EPSILON = 1e-6
"""What torch's own clipping adds to the norm."""


class Fsdp2Engine(TorchEngine):
    """torch `fully_shard` over blocks and root; masters fp32, reductions fp32."""

    wrapped: FSDPModule

    def __init__(self, spec: RunSpec, strategy: Fsdp2Spec, model: nn.Module, world: World) -> None:
        """See `build_engine`."""
        self.strategy = strategy
        super().__init__(spec, model, world)

    def place(self, model: nn.Module) -> nn.Module:
        """Leave it on the host if it stays there; `fully_shard` moves what computes."""
        return model if self.spec.memory.offload is Offload.all else super().place(model)

    def wrap(self, model: LossModel) -> nn.Module:
        """Shard the blocks, then what is left."""
        mesh = init_device_mesh(torch.device(self.world.device).type, (dist.get_world_size(),))
        dtype = DTYPES[self.spec.precision.kind]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        offload = OffloadPolicy()
        if self.spec.memory.offload is Offload.all:
            offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
        for unit in [*blocks_of(model.model), model]:
            sharded = fully_shard(
                unit,
                mesh=mesh,
                mp_policy=policy,
                offload_policy=offload,
                reshard_after_forward=self.strategy.reshard_after_forward,
            )
            sharded.set_force_sum_reduction_for_comms(True)
            sharded.set_gradient_divide_factor(1.0)
        return model

    def mark(self, *, last: bool) -> None:
        """Reduce on the last slot only: local gradients whole until then, one reduction a step."""
        self.wrapped.set_requires_gradient_sync(last)
        self.wrapped.set_is_last_backward(last)

    def find_masters(self) -> dict[str, nn.Parameter]:
        """Shards, in the memory of the parameters."""
        return {
            name: nn.Parameter(_local(parameter), requires_grad=parameter.requires_grad)
            for name, parameter in self.model.named_parameters()
        }

    def masters_with_gradients(self) -> list[nn.Parameter]:
        """Also looks again where the shards are, which is for torch to say."""
        for name, parameter in self.model.named_parameters():
            master, gradient = self.masters[name], parameter.grad
            master.data, parameter.grad = _local(parameter), None
            master.grad = None if gradient is None else _local(gradient)
        return super().masters_with_gradients()

    def clip_gradients(self, masters: list[nn.Parameter]) -> Tensor:
        """A collective; each rank has the norm of its shards."""
        gradients = [cast("Tensor", master.grad) for master in masters]
        # Shards may be on the host, where the backend of a GPU's process group has no collectives.
        squares = get_total_norm(gradients).to(self.world.device).square()
        dist.all_reduce(squares)
        norm = squares.sqrt()
        coefficient = (self.clip / (norm + CLIP_EPSILON)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(coefficient.to(gradient.device))
        return norm

    def owned(self, parameter: nn.Parameter, held: Tensor) -> Fragment:
        """The shard this rank holds."""
        return _shard(cast("DTensor", parameter), held)

    def needed(self, parameter: nn.Parameter, held: Tensor) -> Fragment:
        """The shard this rank holds."""
        return _shard(cast("DTensor", parameter), held)


def _local(tensor: Tensor) -> Tensor:
    return cast("DTensor", tensor.detach()).to_local()


def _shard(tensor: DTensor, local: Tensor) -> Fragment:
    """Rows [rank * ceil(rows / world), ...) of the tensor: one contiguous range."""
    rows, mesh = tensor.shape[0], tensor.device_mesh
    first = min(rows, cast("int", mesh.get_local_rank()) * -(-rows // mesh.size()))
    start = first * (tensor.numel() // rows if rows else 0)
    pieces = (Piece(start, local.view(-1)),) if local.numel() else ()
    return Fragment(tuple(tensor.shape), dtype_name(tensor.dtype), pieces)
