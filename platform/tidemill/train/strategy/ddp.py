"""DDP: every rank holds everything.

Gradients are summed by a communication hook. DDP's own rule divides by the world size first, and
1/3 is no binary fraction: at three ranks that alone doubles the rounding error of the parameters.

DDP reads the hook's annotations as objects, so this module does not postpone them.
"""

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tidemill.spec.progress import World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec
from tidemill.spec.training import PrecisionKind
from tidemill.train.engine import Batch, LossModel
from tidemill.train.precision import DTYPES
from tidemill.train.strategy.torch_engine import TorchEngine


class DdpEngine(TorchEngine):
    """torch DistributedDataParallel with autocast for bf16 and fp16."""

    wrapped: DistributedDataParallel

    def __init__(self, spec: RunSpec, strategy: DdpSpec, model: nn.Module, world: World) -> None:
        """See `build_engine`."""
        self.strategy = strategy
        self.device_type = torch.device(world.device).type
        super().__init__(spec, model, world)

    def wrap(self, model: LossModel) -> nn.Module:
        """Wrap in DDP, gradients summed over ranks."""
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self.world.device] if self.device_type == "cuda" else None,
            bucket_cap_mb=self.strategy.bucket_mib,
            forward_sync_buffers=False,
        )
        wrapped.register_comm_hook(None, _sum_over_ranks)
        return wrapped

    def mark(self, *, last: bool) -> None:
        """Reduce on the last slot only; must hold in forward too, as in DDP's `no_sync`."""
        self.wrapped.require_backward_grad_sync = last

    def forward(self, batch: Batch) -> Tensor:
        """Loss sum of one slot, under autocast in low precision."""
        kind = self.spec.precision.kind
        with (
            contextlib.nullcontext()
            if kind is PrecisionKind.fp32
            else torch.autocast(self.device_type, DTYPES[kind])
        ):
            return super().forward(batch)


def _sum_over_ranks(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])  # pyright: ignore[reportOptionalMemberAccess]
