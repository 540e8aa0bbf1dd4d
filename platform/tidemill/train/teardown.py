"""Teardown: end an engine in a process that goes on, and say what of it is still alive.

What stays behind is worse than lost memory: it answers for the next engine, with the sizes of a
group that is gone, or holds sockets open that tell peers of its end. So every end leaves weak
references, and a process in which one of them still finds something is replaced, not trusted.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # in time: it keeps the group that it is imported in
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.multiprocessing.reductions import StorageWeakRef

from tidemill.train.engine import Engine
from tidemill.train.strategy.deepspeed import DeepSpeedEngine
from tidemill.train.strategy.deepspeed_globals import reset_deepspeed
from tidemill.train.strategy.torch_engine import TorchEngine

Traces = Mapping[str, Callable[[], object | None]]
"""Weak references to what ended, by name; each gives None once that is gone."""


def dismantle(engine: Engine | None, *, failed: bool) -> Traces:
    """End an engine and all process groups, and forget them; never communicates.

    The engine is an empty shell afterwards, so it does not matter who still holds it. Whoever holds
    a part of it does keep that alive. So call it where the frames that built it are gone, never
    where an exception from them is handled, and `errors.forget_frames` first of one that is kept.

    Args:
        engine: What this process trained with; None if there is none.
        failed: Whether the group broke, so that nothing of it may be waited for. Peers that wait
            for this rank fail as soon as its sockets close, instead of sitting out a timeout.

    Returns:
        For `find_survivors`.
    """
    traces = dict(_traces(engine))
    if failed:
        abort_groups()
    if engine is not None:
        _end(engine)
    if dist.is_initialized():
        dist.destroy_process_group()
    reset_globals()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return traces


def find_survivors(traces: Traces) -> list[str]:
    """Names of what ended and is still alive; none if all went well."""
    return [name for name, look in traces.items() if look() is not None]


def abort_groups() -> None:
    """Break off what the process groups still do on a GPU; also from a thread beside training.

    Whatever waits for the device would wait for the dead peer, an engine's own end included. Gloo
    has nothing to break off: its sockets close when the last reference to a group is gone.
    """
    if not dist.is_initialized():
        return
    world = distributed_c10d._get_default_group()  # noqa: SLF001
    batch: Any = None
    if dist.is_nccl_available() and "nccl" in dist.get_backend_config(world):
        batch = world._get_backend(torch.device("cuda"))  # noqa: SLF001
        batch._group_start()  # noqa: SLF001 - alone, one communicator's abort may wait for another
    for group in list(distributed_c10d._world.pg_names):  # noqa: SLF001
        group.abort()
    if batch is not None:
        batch._group_end()  # noqa: SLF001


def freeze() -> None:
    """Keep the garbage collector off everything alive now; once, before the first engine to keep.

    A collection then looks at what training made, and takes 10 ms instead of 300.
    """
    gc.collect()
    gc.freeze()


def reset_globals() -> None:
    """Undo what engines leave in the globals of their libraries, of those that are imported."""
    if "torch.distributed.tensor" in sys.modules:
        forget_meshes()
    if "deepspeed" in sys.modules:
        reset_deepspeed()


def forget_meshes() -> None:
    """Clear what DTensor caches by mesh, in this thread and for all; others end with their thread.

    A cached mesh keeps its group alive, with threads and sockets. And meshes of one shape are
    equal: what was planned for the old one would be found again for the new one.
    """
    from torch.distributed.tensor import _collective_utils, _redistribute, debug
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    debug._clear_sharding_prop_cache()  # noqa: SLF001
    _redistribute.clear_redistribute_planner_cache()
    cached: tuple[Any, ...] = (
        _collective_utils.MeshTopoInfo.build_from_mesh,
        _redistribute._gen_transform_infos,  # noqa: SLF001
        ShardingPropagator._propagate_tensor_meta_cached,  # noqa: SLF001
    )
    for function in cached:
        function.cache_clear()


def _traces(engine: Engine | None) -> Iterator[tuple[str, Callable[[], object | None]]]:
    if dist.is_initialized():
        for group, (backend, _) in distributed_c10d._world.pg_map.items():  # noqa: SLF001
            yield f"process group {group.group_name} ({backend})", weakref.ref(group)
    if engine is None:
        return
    wrapped, optimizer = _inside(engine)
    master = next(iter(optimizer.state))
    yield type(wrapped).__name__, weakref.ref(wrapped)
    yield type(optimizer).__name__, weakref.ref(optimizer)
    yield "first parameter", weakref.ref(next(wrapped.parameters()))
    yield "memory of the first master", _watch_memory(master)


def _inside(engine: Engine) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The wrapped model, and the optimizer over fp32 masters."""
    if isinstance(engine, DeepSpeedEngine):
        return engine.engine, engine.zero.optimizer
    torch_engine = cast("TorchEngine", engine)
    return torch_engine.wrapped, torch_engine.optimizer


def _watch_memory(tensor: Tensor) -> Callable[[], object | None]:
    """Views, which are tensors of their own, keep the memory alive without the tensor."""
    reference = StorageWeakRef(tensor.untyped_storage())
    return lambda: None if reference.expired() else reference


def _end(engine: Engine) -> None:
    """Also of a group that broke; DeepSpeed would leave hooks that no collector can see through."""
    if isinstance(engine, DeepSpeedEngine):
        engine.engine.destroy()
    vars(engine).clear()
