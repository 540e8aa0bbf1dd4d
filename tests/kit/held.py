"""What an engine holds at its most, as the storages that are alive, on a CPU."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tidemill.plan.batch import make_batch_plan
from tidemill.spec.progress import World
from tidemill.spec.run import RunSpec
from tidemill.train.engine import Batch, build_engine
from tidemill.train.model import build_model

STEPS = 2
"""The first one makes what later ones find."""


class Held(TorchDispatchMode):
    """Adds up, after each operator, what is alive at its size of that moment.

    Sharding engines empty storages instead of letting them go, so to count births would not do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta" and _plain(leaf):
                self._know(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _know(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self.alive:
            self.alive[key] = weakref.ref(storage, lambda _: self.alive.pop(key))

    @property
    def bytes(self) -> int:
        """Alive now."""
        held = (each() for each in list(self.alive.values()))
        return sum(storage.nbytes() for storage in held if storage is not None)


def _plain(tensor: Tensor) -> bool:
    return not hasattr(tensor, "_local_tensor")  # a DTensor only refers to one


def measure_held(world: World, spec: RunSpec, vocab: int) -> tuple[int, int]:
    """Bytes that a rank holds between steps, and most in a step with all its slots.

    Takes the optimizer's kernels of a GPU. No step may be skipped: it would hold less.
    """
    torch.optim.AdamW = functools.partial(torch.optim.AdamW, foreach=True)
    torch.optim.SGD = functools.partial(torch.optim.SGD, foreach=True)
    batch, sequence = spec.batch, spec.batch.sequence
    plan = make_batch_plan(batch.global_size, batch.micro_size, world.size, fixed=spec.bitwise)
    slots = [slot.size for slot in plan.slots(world.rank)]
    with Held() as held:
        model = build_model(spec.model, vocab=vocab, sequence=sequence, seed=spec.seed)
        engine = build_engine(spec, model, world)
        del model
        gc.collect()
        between = held.bytes
        for _ in range(STEPS):
            held.peak = 0
            for number, size in enumerate(slots, start=1):
                inputs_BS = torch.zeros(size, sequence, dtype=torch.int64)
                slot = Batch(inputs_BS, inputs_BS.clone(), torch.arange(size))
                engine.accumulate(slot, 0.01, last=number == len(slots))
            assert engine.step(1e-3).applied
    return between, held.peak
