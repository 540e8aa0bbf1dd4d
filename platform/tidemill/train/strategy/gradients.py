"""Gradients of a step's slots, added up as they come and then over ranks, in the order of the tree.

A rank holds one set of gradients for each node of the tree that is not yet added to another. In the
end, bucket by bucket, each rank gets everybody's nodes of its share of the elements, adds them up
and gives everybody the sums. Where each rank has one node, as it does if the number of ranks is a
small power of two, that moves as many bytes as a ring all-reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tidemill.plan.batch import BatchPlan
from tidemill.spec.progress import World
from tidemill.train.reduce import TreeSum, cover

ALIGNMENT = 16
"""Elements: 64 bytes, where torch's own tensors begin, so that kernels treat slices like those."""

Gradients = list[Tensor]


class SlotGradients:
    """The gradients of the slots that one rank runs.

    Args:
        parameters: All that are trained; they have no gradients yet.
        plan: Who runs which slots; they are fixed.
        world: This rank's place.
        bucket_bytes: How much of a node is exchanged at once; a larger parameter goes alone.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        plan: BatchPlan,
        world: World,
        *,
        bucket_bytes: int,
    ) -> None:
        self._parameters, self._count, self._world = parameters, plan.count, world
        self._sum = TreeSum[Gradients](plan.count, _add)
        covers = [cover(plan.numbers(rank), plan.count) for rank in range(world.size)]
        self._nodes = [node for nodes in covers for node in nodes]
        self._held = [len(nodes) for nodes in covers]
        self._buckets = _group(parameters, bucket_bytes)

    def take(self, slot: int) -> None:
        """Take what backward left as the gradient of `slot`, the one after the last."""
        held: Gradients = []
        for parameter in self._parameters:
            gradient, parameter.grad = parameter.grad, None
            # One that this slot did not use counts as zero, as it would between other slots.
            held.append(torch.zeros_like(parameter) if gradient is None else gradient)
        self._sum.put(range(slot, slot + 1), held)

    def reduce(self) -> None:
        """Make every parameter's gradient the sum over all slots of all ranks. Collective."""
        mine = [gradients for _, gradients in self._sum.take()]
        if self._world.size == 1:
            (summed,) = mine
        else:
            summed = [
                gradient
                for bucket in self._buckets
                for gradient in self._exchange(bucket, [gradients[bucket] for gradients in mine])
            ]
        for parameter, gradient in zip(self._parameters, summed, strict=True):
            parameter.grad = gradient

    def _exchange(self, bucket: slice, mine: list[Gradients]) -> Gradients:
        """Add up the nodes of all ranks, as far as they are gradients of one bucket."""
        world, parameters = self._world.size, self._parameters[bucket]
        starts = list(accumulate((_up(p.numel(), ALIGNMENT) for p in parameters), initial=0))
        length = _up(starts[-1], ALIGNMENT * world)
        share = length // world
        empty = parameters[0].detach().new_empty
        laid_out = empty(len(mine), length)
        for gradients, flat in zip(mine, laid_out, strict=True):
            torch._foreach_copy_(_cut(flat, starts, parameters), gradients)
        # By receiver, and for each by node.
        sent = laid_out.view(len(mine), world, share).transpose(0, 1).flatten()
        parts = empty(len(self._nodes), share)
        dist.all_to_all_single(
            parts.view(-1),
            sent,
            [held * share for held in self._held],
            [len(mine) * share] * world,
        )
        whole = TreeSum[Tensor](self._count, Tensor.add_)
        for node, part in zip(self._nodes, parts, strict=True):
            whole.put(node, part)
        ((_, summed),) = whole.take()
        total = empty(length)
        dist.all_gather_single(total, summed)
        return _cut(total, starts, parameters)


def _add(left: Gradients, right: Gradients) -> Gradients:
    torch._foreach_add_(left, right)
    return left


def _group(parameters: Sequence[nn.Parameter], size: int) -> list[slice]:
    """Cut parameters into buckets of at most so many bytes, or of one that has more."""
    buckets, first, held = list[slice](), 0, 0
    for number, parameter in enumerate(parameters):
        if held and held + parameter.nbytes > size:
            buckets.append(slice(first, number))
            first, held = number, 0
        held += parameter.nbytes
    return [*buckets, slice(first, len(parameters))]


def _cut(flat: Tensor, starts: Sequence[int], parameters: Sequence[nn.Parameter]) -> Gradients:
    """The part of each parameter, in its shape."""
    return [
        flat[start : start + parameter.numel()].view(parameter.shape)
        for start, parameter in zip(starts, parameters, strict=False)
    ]


def _up(number: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-number // unit) * unit
