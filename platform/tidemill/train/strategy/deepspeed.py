"""DeepSpeed ZeRO 1, 2 and 3: we own accumulation, learning rate and state; DeepSpeed owns sharding.

Every `engine.step()` is a boundary (`managed_gradient_accumulation: false`), so the number of slots
may change with the world. The optimizer is torch's own: DeepSpeed would compile its own at run
time, and a worker killed in mid-compilation leaves a lock that blocks every later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tidemill.spec.progress import Fragment, Piece, State, World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec
from tidemill.spec.training import PrecisionKind
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
from tidemill.train.strategy.deepspeed_setup import (
    import_deepspeed,
    make_config,
    terse_parameters,
)
from tidemill.train.strategy.frozen import FrozenParameters, shard

PARAMETERS_SHARDED = 3


class DeepSpeedEngine:
    """A DeepSpeed engine. One at a time per process: DeepSpeed keeps state in module globals.

    Private names of DeepSpeed 0.19.8 that this class relies on are listed in
    `tests/train/strategy/test_deepspeed.py`, which fails if a release renames them.
    """

    def __init__(
        self, spec: RunSpec, strategy: DeepSpeedSpec, model: nn.Module, world: World
    ) -> None:
        """See `build_engine`."""
        self.spec, self.strategy, self.world = spec, strategy, world
        # ZeRO-3 can only average. In fp16 a sum would make each rank's share 1/world as large
        # before it is reduced, and small gradients would underflow.
        averages = strategy.stage == PARAMETERS_SHARDED or spec.precision.kind is PrecisionKind.fp16
        self.factor = world.size if averages else 1
        deepspeed = import_deepspeed(world)
        loss_model = LossModel(model)
        self.frozen = FrozenParameters(
            model,
            world,
            cast=spec.precision.kind is not PrecisionKind.fp32,
            sharded=strategy.stage == PARAMETERS_SHARDED,
        )
        with terse_parameters():
            self.engine, *_ = deepspeed.initialize(
                model=loss_model,
                optimizer=make_optimizer(spec.optim, loss_model.named_parameters()),
                config=make_config(spec, strategy, loss_model, averages=averages),
                dist_init_required=False,
            )
        self.zero: Any = self.engine.optimizer
        # Stage 3 shows its inner optimizer one partition at a time, so its groups are not asked.
        prepare_moments(
            self.zero.optimizer,
            spec.optim,
            self.zero.fp32_partitioned_groups_flat
            if strategy.stage == PARAMETERS_SHARDED
            else self.zero.single_partition_of_fp32_groups,
        )

    def accumulate(self, batch: Batch, weight: float, *, last: bool) -> Tensor:  # noqa: ARG002
        """See `Engine.accumulate`; which slot is last does not matter to unmanaged ZeRO."""
        total: Tensor = self.engine(batch.inputs_BS, batch.targets_BS, batch.keys_B)
        self.engine.backward(total * (weight * self.factor), scale_wrt_gas=False)
        return total.detach()

    def step(self, lr: float) -> Outcome:
        """See `Engine.step`; DeepSpeed clips and guards."""
        for group in self.zero.param_groups:
            group["lr"] = lr
        self.engine.step()
        applied = bool(self.engine.was_step_applied())
        norm = self.engine.get_global_grad_norm()
        return Outcome(applied, float("inf") if norm is None or not applied else float(norm))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """See `Engine.evaluate`."""
        self.engine.eval()
        total: Tensor = self.engine(batch.inputs_BS, batch.targets_BS, batch.keys_B)
        self.engine.train()
        return total

    def state(self) -> State:
        """See `Engine.state`."""
        buffers = {name: owned_share(buffer, self.world) for name, buffer in self._buffers()}
        return State(
            dict(self._partitions()) | self.frozen.owned() | buffers,
            {"taken_steps": taken_steps(self.zero.optimizer), "loss_scale": self._loss_scale()},
        )

    def wanted(self) -> State:
        """See `Engine.wanted`."""
        buffers = {name: whole(buffer) for name, buffer in self._buffers()}
        return State(dict(self._partitions()) | self.frozen.needed() | buffers)

    def restore(self, filled: State) -> None:
        """See `Engine.restore`: working weights are made from the masters just filled."""
        zero = self.zero
        self.frozen.restore()
        if self.strategy.stage == PARAMETERS_SHARDED:
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)  # noqa: SLF001
            kept = zero.persistent_parameters
            if kept:
                kept[0].partition(kept)
                kept[0].all_gather(kept)
        else:
            zero.update_lp_params()
        set_taken_steps(zero.optimizer, filled.scalars["taken_steps"])
        scaler = zero.loss_scaler
        if scaler.dynamic and "loss_scale" in filled.scalars:
            scaler.cur_scale = float(filled.scalars["loss_scale"]["value"])
            scaler.cur_iter = int(filled.scalars["loss_scale"]["good_steps"])
            scaler.last_overflow_iter = -1

    def _loss_scale(self) -> dict[str, Any]:
        scaler = self.zero.loss_scaler
        good = scaler.cur_iter - scaler.last_overflow_iter - 1 if scaler.dynamic else 0
        return {"value": float(scaler.cur_scale), "good_steps": good}

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, buffer in persistent_buffers(self.engine.module.model):
            yield f"buffer.{name}", buffer

    def _partitions(self) -> Iterator[tuple[str, Fragment]]:
        """This rank's range of every master and moment, as views of ZeRO's flat partitions.

        Moments are read from the inner optimizer by address: DeepSpeed's own `safe_get_*` accessors
        are wrong for stages 1 and 2 with more than one parameter group.
        """
        cut = (
            self._cut_parameters if self.strategy.stage == PARAMETERS_SHARDED else self._cut_moments
        )
        for name, parameter in self.engine.module.model.named_parameters():
            for key in (None, *moment_names(self.spec.optim)) if parameter.requires_grad else ():
                yield f"{key or 'param'}.{name}", cut(parameter, key)

    def _cut_moments(self, parameter: nn.Parameter, key: str | None) -> Fragment:
        """Stages 1 and 2: the parameter is whole, masters and moments are partitioned."""
        held = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]  # noqa: SLF001
        pieces: tuple[Piece, ...] = ()
        if held is not None:
            master = self.zero.single_partition_of_fp32_groups[held.param_group_index]
            flat = master.data if key is None else self.zero.optimizer.state[master][key]
            address = held.hp_fragment_address
            view = flat.view(-1).narrow(0, address.start, address.numel)
            pieces = (Piece(held.lp_fragment_address.start, view),)
        return Fragment(tuple(parameter.shape), "float32", pieces)

    def _cut_parameters(self, parameter: nn.Parameter, key: str | None) -> Fragment:
        """Stage 3: rank k holds elements [k * ceil(n / world), ...), the last one padded."""
        partition, _ = self.zero._get_fp32_opt_state_partition(parameter, True, key)  # noqa: FBT003, SLF001
        rank = self.zero._get_param_partition_rank(parameter)  # noqa: SLF001
        return shard(partition.detach().view(-1), tuple(parameter.ds_shape), rank)  # pyright: ignore[reportAttributeAccessIssue]
