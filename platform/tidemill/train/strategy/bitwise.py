"""DDP that is the same to the last bit at any number of ranks.

A slot's gradient and loss depend on its samples alone: slots are cut alike for every world, and
each begins with the same buffers, random numbers and kernels. What remains is the order in which
slots are added up, and that is the tree's (`tidemill.train.reduce`), whoever ran them.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tidemill.plan.batch import make_batch_plan
from tidemill.spec.progress import World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec
from tidemill.train.engine import Batch, LossModel, Outcome, persistent_buffers
from tidemill.train.ranks import use_threads
from tidemill.train.strategy.ddp import DdpEngine
from tidemill.train.strategy.gradients import SlotGradients

SEEDS = 2**63
SEED_STRIDE = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: keeps samples of runs with neighbouring seeds apart."""


class BitwiseEngine(DdpEngine):
    """Every rank holds everything, as under DDP."""

    def __init__(self, spec: RunSpec, strategy: DdpSpec, model: nn.Module, world: World) -> None:
        """See `build_engine`."""
        pin_kernels(torch.device(world.device))
        super().__init__(spec, strategy, model, world)
        self.plan = make_batch_plan(
            spec.batch.global_size, spec.batch.micro_size, world.size, fixed=True
        )
        self.numbers = self.plan.numbers(world.rank)
        self.done = 0
        self.gradients = SlotGradients(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            self.plan,
            world,
            bucket_bytes=strategy.bucket_mib * 2**20,
        )
        self.buffers = [name for name, _ in persistent_buffers(self.model)]
        self.left = self._copy_buffers()

    def wrap(self, model: LossModel) -> nn.Module:
        """Leave it as it is: nothing is communicated in backward."""
        return model

    def mark(self, *, last: bool) -> None:
        """Backward is the same for every slot."""

    def accumulate(self, batch: Batch, weight: float, *, last: bool) -> Tensor:
        """See `Engine.accumulate`; a rank that has no slots is only there when ranks add up."""
        total = torch.zeros((), device=self.world.device)
        if self.numbers:
            total = self._run(self.numbers[self.done], batch, weight)
            self.done += 1
        if last:
            self.done = 0
            self.gradients.reduce()
            self._hear_of_buffers()
        return total

    def step(self, lr: float) -> Outcome:
        """See `Engine.step`; it is now that buffers become what the step's last slot left."""
        outcome = super().step(lr)
        self._fill_buffers(self.left)
        return outcome

    def _run(self, number: int, batch: Batch, weight: float) -> Tensor:
        """One slot, from the buffers and random numbers that it has in every world."""
        if not self.model.keyed:
            key = int(batch.keys_B[0])
            torch.manual_seed((self.spec.seed * SEED_STRIDE + key) % SEEDS)
        before = self._copy_buffers()
        total = super().accumulate(batch, weight, last=False)
        self.gradients.take(number)
        self.left = self._copy_buffers()
        self._fill_buffers(before)
        return total

    def _hear_of_buffers(self) -> None:
        """Learn what the step's last slot left; it is always the last rank's."""
        for left in self.left if self.world.size > 1 else ():
            dist.broadcast(left, src=self.world.size - 1)

    def _copy_buffers(self) -> list[Tensor]:
        held = (self.model.get_buffer(name) for name in self.buffers)
        return [buffer.clone(memory_format=torch.contiguous_format) for buffer in held]

    def _fill_buffers(self, values: list[Tensor]) -> None:
        for name, value in zip(self.buffers, values, strict=True):
            self.model.get_buffer(name).copy_(value)


def pin_kernels(device: torch.device) -> None:
    """Make this process's kernels give the same bits each time, wherever it runs.

    On a CPU, one thread: how many there are decides how a kernel cuts its sums. On a GPU, torch's
    deterministic algorithms, which refuse what has none, and a fixed workspace for cuBLAS.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if device.type != "cuda":
        use_threads(1)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False
