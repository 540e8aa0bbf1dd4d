"""What the torch strategies share: clipping, the non-finite guard, loss scaling, state by name.

Masters are the parameters themselves, always fp32; low precision exists only inside forward and
backward.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from tidemill.spec.progress import Fragment, State, World
from tidemill.spec.run import RunSpec
from tidemill.train.engine import (
    Batch,
    LossModel,
    Outcome,
    owned_share,
    persistent_buffers,
    whole,
)
from tidemill.train.optim import (
    make_optimizer,
    moment_names,
    prepare_moments,
    set_taken_steps,
    taken_steps,
)
from tidemill.train.precision import make_loss_scale


class TorchEngine(abc.ABC):
    """An engine whose optimizer is a plain torch one over named parameters.

    Attributes:
        masters: What the optimizer updates, by name in `model`.
    """

    def __init__(self, spec: RunSpec, model: nn.Module, world: World) -> None:
        """Move the model to its device, wrap it, and build the optimizer over what results."""
        self.spec, self.world = spec, world
        self.scale = make_loss_scale(spec.precision)
        self.clip = spec.optim.clip or float("inf")
        self.model = LossModel(self.place(model))
        self.wrapped = self.wrap(self.model)
        self.masters = self.find_masters()
        self.optimizer = make_optimizer(spec.optim, self.masters.items())
        trained = (p for group in self.optimizer.param_groups for p in group["params"])
        prepare_moments(self.optimizer, spec.optim, trained)

    @abc.abstractmethod
    def wrap(self, model: LossModel) -> nn.Module:
        """Put the strategy around `model`."""

    @abc.abstractmethod
    def mark(self, *, last: bool) -> None:
        """Prepare gradient communication for a slot."""

    def place(self, model: nn.Module) -> nn.Module:
        """Put the model where it computes."""
        return model.to(self.world.device)

    def find_masters(self) -> dict[str, nn.Parameter]:
        """The part of each parameter that this rank updates."""
        return dict(self.model.named_parameters())

    def masters_with_gradients(self) -> list[nn.Parameter]:
        """Those that the step just accumulated is to update."""
        return [master for master in self.masters.values() if master.grad is not None]

    def forward(self, batch: Batch) -> Tensor:
        """Loss sum of one slot."""
        return self.wrapped(batch.inputs_BS, batch.targets_BS, batch.keys_B)

    def accumulate(self, batch: Batch, weight: float, *, last: bool) -> Tensor:
        """See `Engine.accumulate`."""
        self.mark(last=last)
        total = self.forward(batch)
        (total * (weight * self.scale.value)).backward()
        return total.detach()

    def step(self, lr: float) -> Outcome:
        """See `Engine.step`; the norm is of reduced gradients, so all ranks judge alike."""
        masters = self.masters_with_gradients()
        if self.scale.value != 1.0:
            for master in masters:
                master.grad.mul_(1.0 / self.scale.value)  # pyright: ignore[reportOptionalMemberAccess]
        norm = self.clip_gradients(masters)
        applied = bool(torch.isfinite(norm))
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.scale.update(finite=applied)
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(applied, float(norm))

    def clip_gradients(self, masters: list[nn.Parameter]) -> Tensor:
        """Scale reduced gradients down to the limit; give their norm over all ranks before."""
        return clip_grad_norm_(masters, self.clip)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """See `Engine.evaluate`."""
        self.wrapped.eval()
        total = self.forward(batch)
        self.wrapped.train()
        return total

    def state(self) -> State:
        """See `Engine.state`."""
        scalars = {"taken_steps": taken_steps(self.optimizer), "loss_scale": self.scale.state()}
        tensors = {name: self.owned(parameter, held) for name, parameter, held in self._held()}
        for name, buffer in self._buffers():
            tensors[name] = owned_share(buffer, self.world)
        return State(tensors, scalars)

    def wanted(self) -> State:
        """See `Engine.wanted`."""
        tensors = {name: self.needed(parameter, held) for name, parameter, held in self._held()}
        for name, buffer in self._buffers():
            tensors[name] = whole(buffer)
        return State(tensors)

    def restore(self, filled: State) -> None:
        """See `Engine.restore`; tensors were filled in place, scalars are left to do."""
        set_taken_steps(self.optimizer, filled.scalars["taken_steps"])
        if "loss_scale" in filled.scalars:
            self.scale.restore(filled.scalars["loss_scale"])

    def owned(self, parameter: nn.Parameter, held: Tensor) -> Fragment:  # noqa: ARG002
        """The part of a parameter or its moment that this rank writes, of what it holds."""
        return owned_share(held, self.world)

    def needed(self, parameter: nn.Parameter, held: Tensor) -> Fragment:  # noqa: ARG002
        """The part of a parameter or its moment that this rank reads."""
        return whole(held)

    def _held(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Name of each tensor, the parameter that it belongs to, and what this rank holds of it."""
        for name, parameter in self.model.model.named_parameters():
            master = self.masters[f"model.{name}"]
            yield f"param.{name}", parameter, master.data
            if parameter.requires_grad:
                for moment in moment_names(self.spec.optim):
                    yield f"{moment}.{name}", parameter, self.optimizer.state[master][moment]

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, buffer in persistent_buffers(self.model.model):
            yield f"buffer.{name}", buffer
