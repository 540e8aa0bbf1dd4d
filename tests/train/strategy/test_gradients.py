"""Sums of gradients have the same bits in every world, bucket by bucket, used or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.kit.world import run_world
from tidemill.plan.batch import make_batch_plan
from tidemill.spec.progress import World
from tidemill.train.strategy.gradients import SlotGradients

SHAPES = [(5, 7), (1,), (33,), (16, 4), (3, 3, 3), (2,)]
COUNT = 7
STEPS = 2
BUCKETS = [1, 200, 2**20]
"""Bytes: a parameter each, some together, all together."""


def _gradient(step: int, slot: int, number: int) -> Tensor | None:
    """What a slot would leave; the second parameter is used in two of them, the last in none."""
    if (number == 1 and slot not in {2, 5}) or number == len(SHAPES) - 1:
        return None
    torch.manual_seed(1000 * step + 10 * slot + number)
    return torch.randn(SHAPES[number]) * 10.0 ** (slot % 4)


def _reduced(world: World) -> list[list[Tensor]]:
    """By size of buckets, the sums of all steps."""
    plan = make_batch_plan(COUNT, 1, world.size, fixed=True)
    found: list[list[Tensor]] = []
    for size in BUCKETS:
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        gradients = SlotGradients(parameters, plan, world, bucket_bytes=size)
        sums: list[Tensor] = []
        for step in range(STEPS):
            for slot in plan.numbers(world.rank):
                for number, parameter in enumerate(parameters):
                    assert parameter.grad is None
                    parameter.grad = _gradient(step, slot, number)
                gradients.take(slot)
            gradients.reduce()
            for parameter in parameters:
                assert parameter.grad is not None
                sums.append(parameter.grad.clone())
                parameter.grad = None
        found.append(sums)
    return found


@pytest.fixture(scope="module")
def alone() -> list[Tensor]:
    expected, *others = _reduced(World())
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(expected, other, strict=True))
    return expected


def test_one_rank_adds_up_all_slots(alone: list[Tensor]) -> None:
    for step in range(STEPS):
        for number, shape in enumerate(SHAPES):
            held = [_gradient(step, slot, number) for slot in range(COUNT)]
            expected = sum((g.double() for g in held if g is not None), torch.zeros(shape).double())
            assert torch.allclose(alone[step * len(SHAPES) + number], expected.float(), atol=0.01)


@pytest.mark.parametrize("size", [3, 9])  # several nodes on one rank; ranks without any
def test_ranks_come_to_the_same_bits(size: int, alone: list[Tensor]) -> None:
    for by_bucket in run_world(_reduced, size):
        assert len(by_bucket) == len(BUCKETS)
        for sums in by_bucket:
            for ours, theirs in zip(sums, alone, strict=True):
                assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
