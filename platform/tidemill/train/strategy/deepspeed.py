"""DeepSpeed ZeRO 1, 2 and 3: we own accumulation, learning rate and state; DeepSpeed owns sharding.

Every `engine.step()` is a boundary (`managed_gradient_accumulation: false`), so the number of slots
may change with the world. The optimizer is torch's own: DeepSpeed would compile its own at run
time, and a worker killed in mid-compilation leaves a lock that blocks every later one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tidemill.errors import SpecError
from tidemill.spec.progress import Fragment, Piece, State, World
from tidemill.spec.run import DeepSpeedSpec, RunSpec
from tidemill.spec.training import PrecisionKind, PrecisionSpec
from tidemill.train.engine import Batch, LossModel, Outcome, owned_share, whole
from tidemill.train.optim import (
    make_optimizer,
    moment_names,
    prepare_moments,
    set_taken_steps,
    taken_steps,
)
from tidemill.train.strategy.torch_engine import persistent_buffers

SMALLEST_BUCKET_ELEMENTS = 5_000_000
LARGEST_BUCKET_ELEMENTS = 500_000_000
BUCKET_MULTIPLE = 2
PARAMETERS_SHARDED = 3
NEVER = 10**9


class DeepSpeedEngine:
    """A DeepSpeed engine. One at a time per process: DeepSpeed keeps state in module globals.

    Private names of DeepSpeed 0.19.8 that this class relies on are listed in
    `tests/train/strategy/test_deepspeed.py`, which fails if a release renames them.
    """

    def __init__(
        self, spec: RunSpec, strategy: DeepSpeedSpec, model: nn.Module, world: World
    ) -> None:
        """See `build_engine`."""
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            raise SpecError(
                "strategy",
                f"DeepSpeed's flat partitions leave out frozen parameters such as {frozen[0]}",
                "use strategy=ddp or strategy=fsdp2",
            )
        self.spec, self.strategy, self.world = spec, strategy, world
        # ZeRO-3 can only average. In fp16 a sum would make each rank's share 1/world as large
        # before it is reduced, and small gradients would underflow.
        averages = strategy.stage == PARAMETERS_SHARDED or spec.precision.kind is PrecisionKind.fp16
        self.factor = world.size if averages else 1
        deepspeed = _import_deepspeed(world)
        loss_model = LossModel(model)
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
        tensors = dict(self._partitions())
        for name, buffer in self._buffers():
            tensors[name] = owned_share(buffer, self.world)
        return State(
            tensors,
            {"taken_steps": taken_steps(self.zero.optimizer), "loss_scale": self._loss_scale()},
        )

    def wanted(self) -> State:
        """See `Engine.wanted`."""
        tensors = dict(self._partitions())
        for name, buffer in self._buffers():
            tensors[name] = whole(buffer)
        return State(tensors)

    def restore(self, filled: State) -> None:
        """See `Engine.restore`: working weights are made from the masters just filled."""
        zero = self.zero
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
            for key in (None, *moment_names(self.spec.optim)):
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
        flat = partition.detach().view(-1)
        start = self.zero._get_param_partition_rank(parameter) * flat.numel()  # noqa: SLF001
        held = max(0, min(flat.numel(), parameter.ds_numel - start))  # pyright: ignore[reportAttributeAccessIssue]
        pieces = (Piece(start, flat.narrow(0, 0, held)),) if held else ()
        return Fragment(tuple(parameter.ds_shape), "float32", pieces)  # pyright: ignore[reportAttributeAccessIssue]


def make_config(
    spec: RunSpec, strategy: DeepSpeedSpec, model: nn.Module, *, averages: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration, plain JSON types only.

    No `train_batch_size` and no accumulation: both belong to the BatchPlan. Buckets default to half
    a billion elements, which is gigabytes per worker, so they are sized from the model.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    bucket = strategy.bucket_elements or min(
        LARGEST_BUCKET_ELEMENTS,
        max(*sizes, sum(sizes) // 10, min(sum(sizes), SMALLEST_BUCKET_ELEMENTS)),
    )
    bucket += bucket % BUCKET_MULTIPLE
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_allreduce_op": "mean" if averages else "sum",
        "gradient_clipping": spec.optim.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
        "zero_optimization": {
            "stage": strategy.stage,
            "overlap_comm": strategy.overlap,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
        **_precision(spec.precision),
    }


def _precision(spec: PrecisionSpec) -> dict[str, Any]:
    match spec.kind:
        case PrecisionKind.fp32:
            return {}
        case PrecisionKind.bf16:
            return {"bf16": {"enabled": True}}
        case PrecisionKind.fp16:
            # Hysteresis 1 is the torch engines' rule: every overflow halves the scale.
            return {
                "fp16": {
                    "enabled": True,
                    "loss_scale": spec.loss_scale,
                    "initial_scale_power": spec.initial_scale_power,
                    "loss_scale_window": spec.scale_window,
                    "hysteresis": 1,
                    "min_loss_scale": 1,
                }
            }


def _import_deepspeed(world: World) -> Any:
    """Import DeepSpeed so that it neither probes, prints nor compiles anything."""
    on_cpu = not world.device.startswith("cuda")
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Without it DeepSpeed counts NUMA nodes by calling numactl.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(world.size)))
    deepspeed: Any = importlib.import_module("deepspeed")

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_cpu:
        # DeepSpeed asks for vector instructions that make low precision fast on a CPU; torch
        # computes the same numbers without them.
        accelerator = deepspeed.get_accelerator()
        accelerator.is_bf16_supported = accelerator.is_fp16_supported = lambda: True
    # No compiled op is ever compatible: nothing is built at run time, nor a compiler called to find
    # out what could be.
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    with _no_compiler():
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), dist_init_required=False, verbose=False
    )
    return deepspeed


@contextlib.contextmanager
def _no_compiler() -> Iterator[None]:
    """Keep `@torch.compile` at import time from loading the compiler.

    DeepSpeed imports an optimizer we do not use, only to compare types; its decorator would load
    all of TorchInductor, 1.8 s of every worker's start.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
