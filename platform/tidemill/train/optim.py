"""Optimizers with decay groups, and the learning rate as a pure function of the step.

There is no scheduler object: the loop passes `lr_at(spec, step)` to the engine, so nothing about
the learning rate has to be saved, and a skipped step cannot shift it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tidemill.errors import SpecError
from tidemill.spec.training import AdamWSpec, OptimSpec, ScheduleKind, SgdSpec

MATRIX = 2


def lr_at(spec: OptimSpec, step: int) -> float:
    """Learning rate of step number `step` (the first is 0).

    Warm-up rises linearly and reaches `lr` on step `warmup_steps - 1`; the fall ends at
    `decay_steps`, after which the rate stays at `lr * final_fraction`.
    """
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    if spec.schedule is ScheduleKind.constant:
        return spec.lr
    done = min(1.0, (step - spec.warmup_steps) / (spec.decay_steps - spec.warmup_steps))
    if spec.schedule is ScheduleKind.linear:
        shape = 1.0 - done
    else:
        shape = 0.5 * (1.0 + math.cos(math.pi * done))
    return spec.lr * (spec.final_fraction + (1.0 - spec.final_fraction) * shape)


def make_optimizer(
    spec: OptimSpec, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """Build the torch optimizer; tensors of fewer than two dimensions do not decay.

    Source: the decay rule is that of GPT-3 and its open reimplementations (nanoGPT).
    """
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if _rank(parameter) >= MATRIX],
            "weight_decay": spec.weight_decay,
        },
        {
            "params": [parameter for parameter in trained if _rank(parameter) < MATRIX],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise SpecError("model", "has no trainable parameters", "leave some unfrozen")
    match spec:
        case AdamWSpec():
            return torch.optim.AdamW(
                groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps
            )
        case SgdSpec():
            return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
        case _:
            raise SpecError("optim", f"{type(spec).__name__} has no builder", "use optim=adamw")


def moment_names(spec: OptimSpec) -> tuple[str, ...]:
    """Names under which the torch optimizer keeps its per-element state."""
    match spec:
        case AdamWSpec():
            return ("exp_avg", "exp_avg_sq")
        case SgdSpec(momentum=momentum) if momentum > 0:
            return ("momentum_buffer",)
        case _:
            return ()


def prepare_moments(
    optimizer: torch.optim.Optimizer, spec: OptimSpec, parameters: Iterable[torch.Tensor]
) -> None:
    """Create the state that the first step would create, so that it can be saved and loaded.

    Zero moments are what torch starts from; momentum 0 x m plus the gradient is the gradient.

    Args:
        optimizer: Fresh.
        spec: What it was made from.
        parameters: The tensors that it updates.
    """
    for parameter in parameters:
        state: dict[str, Any] = optimizer.state[parameter]
        if isinstance(spec, AdamWSpec):
            state.setdefault("step", torch.zeros((), dtype=torch.float32))
        for name in moment_names(spec):
            state.setdefault(name, torch.zeros_like(parameter.data))


def taken_steps(optimizer: torch.optim.Optimizer) -> float:
    """AdamW's own step count, which bias correction needs; 0 for optimizers without one."""
    for state in optimizer.state.values():
        if "step" in state:
            return float(state["step"])
    return 0.0


def set_taken_steps(optimizer: torch.optim.Optimizer, steps: float) -> None:
    """Restore what `taken_steps` returned."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(steps)


def _rank(parameter: nn.Parameter) -> int:
    """Dimensions of the whole tensor; ZeRO-3 leaves a flat placeholder and keeps the shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
