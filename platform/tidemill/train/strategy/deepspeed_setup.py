"""How DeepSpeed is imported and configured: nothing probed, printed or compiled, buckets sized.

The configuration leaves batch sizes out, because they belong to the BatchPlan.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn

from tidemill.spec.progress import World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec, Offload
from tidemill.spec.training import PrecisionKind, PrecisionSpec

SMALLEST_BUCKET_ELEMENTS = 5_000_000
LARGEST_BUCKET_ELEMENTS = 500_000_000
BUCKET_MULTIPLE = 2
NEVER = 10**9


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
            **_offload(spec),
        },
        **_precision(spec.precision),
    }


def _offload(spec: RunSpec) -> dict[str, Any]:
    # Page-locked memory is for copies to and from a GPU.
    host = {"device": "cpu", "pin_memory": spec.scale.gpus_per_worker > 0}
    match spec.memory.offload:
        case Offload.none:
            return {}
        case Offload.optimizer:
            return {"offload_optimizer": host}
        case Offload.all:
            return {"offload_optimizer": host, "offload_param": host}


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


def import_deepspeed(world: World) -> Any:
    """DeepSpeed, ready for the process group that there is."""
    # DeepSpeed reads its place from the environment, and a kept process has that of an older group.
    os.environ |= {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_SIZE": os.environ.get("LOCAL_WORLD_SIZE", str(world.size)),
    }
    deepspeed = load_deepspeed(world.device)
    deepspeed.init_distributed(
        dist_backend=dist.get_backend(), dist_init_required=False, verbose=False
    )
    return deepspeed


def load_deepspeed(device: str) -> Any:
    """Import DeepSpeed so that it neither probes, prints nor compiles anything.

    At best before there is a process group: one that is there becomes the default of an argument,
    and stays for as long as the process does.
    """
    on_cpu = not device.startswith("cuda")
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Without it DeepSpeed counts NUMA nodes by calling numactl.
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
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
    return deepspeed


@contextlib.contextmanager
def terse_parameters() -> Iterator[None]:
    """Keep parameters from being written out with their values.

    ZeRO-3 formats all of them for a message that it then does not print, a tenth of its start.
    """
    parameter: Any = nn.Parameter
    before = parameter.__repr__
    parameter.__repr__ = object.__repr__
    try:
        yield
    finally:
        parameter.__repr__ = before


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
