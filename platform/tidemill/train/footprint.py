"""Footprint: what a model holds for one micro-batch, measured without allocating any of it.

The run's own model is built of fake tensors, which have shapes but no memory, and one forward and
backward are followed operator by operator: whatever storage is alive counts once, for as long as it
is. That sees what autograd saves, what a checkpoint keeps, and what autocast caches, of any model.

It sees them as on a CPU, which is the only device whose kernels can be followed everywhere. What
is known to differ on a GPU saves less there: norms are fused, and attention in fp32 needs no copy
of its output. The flash kernel, which a CPU has too, saves the same on both; what is left to the
math kernel (a mask that needs gradients, say) saves the whole matrix of scores there as here.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tidemill.errors import SpecError, TidemillError
from tidemill.plan.activations import LOGITS, Activations, Footprint
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec
from tidemill.spec.training import PrecisionKind
from tidemill.train.engine import LossModel
from tidemill.train.model import apply_recompute, blocks_of, build_model
from tidemill.train.precision import DTYPES


def trace_footprint(spec: RunSpec, vocab: int) -> Footprint:
    """Measure a run's model at `batch.micro_size`, in the number formats of its strategy.

    Takes seconds and no memory to speak of, whatever the size of the model. Leaves torch's random
    numbers as they are.

    Args:
        spec: The run.
        vocab: Number of distinct tokens.

    Raises:
        SpecError: The model cannot be built, or not be followed without its values.
    """
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            return _trace(spec, vocab)
        except TidemillError:
            raise
        except Exception as error:  # a user's own code may raise anything
            said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise SpecError(
                "model.factory",
                f"cannot be traced ({said})",
                "keep what depends on values (.item(), loaded weights) out of building and forward",
            ) from error


def _trace(spec: RunSpec, vocab: int) -> Footprint:
    samples, sequence = spec.batch.micro_size, spec.batch.sequence
    model = build_model(spec.model, vocab=vocab, sequence=sequence, seed=spec.seed)
    apply_recompute(model, spec.memory.recompute)
    blocks = [sum(part.numel() for part in block.parameters()) for block in blocks_of(model)]
    weights = list(model.parameters())
    slot = _Slot(LossModel(model), spec)
    inputs_BS = torch.zeros(samples, sequence, dtype=torch.int64)
    batch = (inputs_BS, inputs_BS.clone(), torch.zeros(samples, dtype=torch.int64))
    held = _computing(slot, spec)
    alive = Alive(batch, held.values())
    saved: list[Held] = []
    with alive:
        torch.func.functional_call(slot, held, (*batch, lambda: saved.append(alive.now)))
    logits = LOGITS * samples * sequence * vocab
    return Footprint(
        parameters=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        largest=max(weight.numel() for weight in weights),
        block=max(blocks, default=0),
        blocks=len(blocks),
        activations=Activations(
            samples=samples,
            saved_bytes=saved[0].bytes,
            peak_bytes=alive.peak.bytes,
            logits_bytes=logits if logits <= alive.peak.bytes else 0,
            saved_fixed_bytes=saved[0].fixed,
            peak_fixed_bytes=alive.peak.fixed,
        ),
    )


class _Slot(nn.Module):
    """Forward and backward of a micro-batch, as one forward: weights are exchanged only in that."""

    def __init__(self, model: LossModel, spec: RunSpec) -> None:
        super().__init__()
        self.model = model
        self.kind = spec.precision.kind
        self.autocast = isinstance(spec.strategy, DdpSpec) and self.kind is not PrecisionKind.fp32

    def forward(
        self, inputs_BS: Tensor, targets_BS: Tensor, keys_B: Tensor, between: Callable[[], None]
    ) -> None:
        with (
            torch.autocast("cpu", DTYPES[self.kind]) if self.autocast else contextlib.nullcontext()
        ):
            loss = self.model(inputs_BS, targets_BS, keys_B)
        between()
        loss.backward()


def _computing(slot: _Slot, spec: RunSpec) -> dict[str, Tensor]:
    """Weights and buffers in the format that the strategy computes in.

    FSDP2 casts parameters, DeepSpeed also buffers; autocast casts neither, but copies.
    """
    dtype = torch.float32 if slot.autocast else DTYPES[spec.precision.kind]
    held: dict[str, Tensor] = {}
    for name, weight in slot.named_parameters():
        held[name] = weight.detach().to(dtype).requires_grad_(weight.requires_grad)
        if weight.requires_grad:
            held[name].register_post_accumulate_grad_hook(_forget)
    cast = isinstance(spec.strategy, DeepSpeedSpec)
    for name, buffer in slot.named_buffers():
        held[name] = buffer.to(dtype) if cast and buffer.is_floating_point() else buffer
    return held


def _forget(weight: Tensor) -> None:
    """Gradients of weights belong to the strategy, so they go as soon as they are there."""
    weight.grad = None


class Held(NamedTuple):
    """What is alive, and as much of it as does not depend on samples."""

    bytes: int = 0
    fixed: int = 0


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operators return, while they are alive.

    Args:
        inputs: Tensors whose storages do not count.
        weights: More of them; what is made of these alone, or of nothing, is fixed.

    Attributes:
        now: Alive now.
        peak: When most were alive.
    """

    def __init__(self, inputs: Iterable[Tensor], weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = Held()
        self._seen: dict[int, Any] = {}
        self._independent: set[int] = set()
        for tensor in inputs:
            self._know(tensor)
        for tensor in weights:
            self._independent.add(self._know(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, and count what is new in its result."""
        of = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._count(tensor.untyped_storage(), fixed=of <= self._independent)
        return result

    def _know(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._seen[id(storage)] = storage
        return id(storage)

    def _count(self, storage: torch.UntypedStorage, *, fixed: bool) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_: object) -> None:
            del self._seen[key]
            self._independent.discard(key)
            self._add(-size, fixed=fixed)

        self._seen[key] = weakref.ref(storage, freed)
        if fixed:
            self._independent.add(key)
        self._add(size, fixed=fixed)

    def _add(self, size: int, *, fixed: bool) -> None:
        self.now = Held(self.now.bytes + size, self.now.fixed + size * fixed)
        if self.now.bytes > self.peak.bytes:
            self.peak = self.now


def _tensors(result: Any) -> Iterator[Tensor]:
    leaves = (leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor))
    return (tensor for tensor in leaves if tensor.device.type != "meta")
