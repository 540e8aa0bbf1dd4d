"""The training loop: take, agree, accumulate, step, record; validate and save when due.

The loop knows no strategy, no storage and no Ray. Whatever it needs of them comes in through four
protocols, so a worker, a test and a benchmark run the same loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tidemill.plan.batch import Slot, make_batch_plan
from tidemill.spec.progress import Cursor, EventKind, Recorder, State, World
from tidemill.spec.run import RunSpec
from tidemill.train.cadence import Cadence, CheckpointStore
from tidemill.train.engine import IGNORE, Batch, Engine
from tidemill.train.guard import Guard
from tidemill.train.optim import lr_at
from tidemill.train.ranks import agree, sum_over_ranks

BYTE_VALUES = 256

Integers = NDArray[np.int64]


class Samples(Protocol):
    """What a stream gives."""

    @property
    def inputs(self) -> Integers:
        """Tokens, shape (B, S)."""
        ...

    @property
    def targets(self) -> Integers:
        """Next tokens, shape (B, S); `IGNORE` where there is nothing to learn."""
        ...

    @property
    def keys(self) -> Integers:
        """Number of each sample in the run, shape (B,)."""
        ...


class Stream(Protocol):
    """Samples by number; pure in (seed, number)."""

    @property
    def samples(self) -> int:
        """Samples per epoch."""
        ...

    def take(self, first: int, slot: Slot) -> Samples:
        """The samples of `slot` in the step that starts with sample number `first`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What one rank trains with.

    Attributes:
        engine: The model under its strategy.
        guard: Watches for steps that are skipped.
        stream: Training samples.
        held_out: Validation samples; may have none.
        byte_level: Whether tokens below 256 are bytes, so that loss can be told in bits per byte.
        store: Where state is committed.
        recorder: Where events go; only rank 0's is read.
        stop_requested: Whether somebody asked this rank to save and stop.
        save_requested: Whether somebody asked this rank for a checkpoint since the last call.
    """

    engine: Engine
    guard: Guard
    stream: Stream
    held_out: Stream
    byte_level: bool
    store: CheckpointStore
    recorder: Recorder
    stop_requested: Callable[[], bool]
    save_requested: Callable[[], bool]


def train(spec: RunSpec, parts: Parts, world: World, cursor: Cursor) -> Cursor:
    """Train from `cursor` to the last step, or to a stop that somebody asked for.

    A checkpoint is committed before it returns, whatever the reason. Every rank calls it.

    Args:
        spec: The run.
        parts: This rank's engine, streams, store and recorder.
        world: This rank's place.
        cursor: Where to begin; the engine holds the state as of it.

    Returns:
        Where the run is now.

    Raises:
        CheckpointError: What there was to save at the end cannot be saved.
        TrainingError: Too many steps in a row were skipped.
    """
    engine, guard, record = parts.engine, parts.guard, parts.recorder.record
    slots = make_batch_plan(spec.batch.global_size, spec.batch.micro_size, world.size).slots(
        world.rank
    )

    def look() -> State:
        state = engine.state()
        return State(state.tensors, state.scalars | {"guard": guard.state()})

    cadence = Cadence(spec, parts.store, look, parts.save_requested)
    metrics, began_s = {"loss": math.nan}, time.perf_counter()
    while cursor.step < spec.steps:
        started_s = time.perf_counter()
        taken = [parts.stream.take(cursor.samples, slot) for slot in slots]
        valid = sum(int(np.count_nonzero(samples.targets != IGNORE)) for samples in taken)
        flags = (parts.stop_requested(), cadence.asks(), cadence.saves())
        valid, stopping, asked, busy = agree(world, valid, *map(int, flags))
        weight = 1.0 / max(valid, 1)
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        for number, samples in enumerate(taken, start=1):
            batch = to_device(samples, world)
            total += engine.accumulate(batch, weight, last=number == len(taken))
        lr = lr_at(spec.optim, cursor.step)
        parts.store.settle()
        outcome = engine.step(lr)
        loss = sum_over_ranks(world, total) * weight
        last = cursor.step + 1 == spec.steps
        if last or not outcome.applied or cursor.step % spec.report.every_steps == 0:
            record(
                EventKind.step,
                step=cursor.step,
                loss=loss,
                lr=lr,
                grad_norm=outcome.grad_norm,
                applied=outcome.applied,
                tokens=valid,
                seconds=time.perf_counter() - started_s,
                samples=cursor.samples + spec.batch.global_size,
            )
        guard.note(outcome, cursor.step)
        cursor = Cursor(step=cursor.step + 1, samples=cursor.samples + spec.batch.global_size)
        metrics = {"loss": loss}
        every = spec.report.eval_every_steps
        if last or (every and cursor.step % every == 0):
            metrics |= evaluate(spec, parts, world, cursor)
        cadence.after(cursor, metrics, asked=asked > 0, busy=busy > 0)
        if stopping and cursor.step < spec.steps:
            record(EventKind.stop_requested, step=cursor.step)
            break
    cadence.finish(cursor, metrics)
    if cursor.step >= spec.steps:
        record(
            EventKind.finished,
            step=cursor.step,
            loss=metrics["loss"],
            seconds=time.perf_counter() - began_s,
        )
    else:
        record(EventKind.stopped, step=cursor.step)
    return cursor


def evaluate(spec: RunSpec, parts: Parts, world: World, cursor: Cursor) -> dict[str, float]:
    """Measure the loss on held-out samples, always the same ones, and record it.

    Returns:
        It, as `val_loss`, nats per target; empty if no samples are held out.
    """
    count = min(parts.held_out.samples, spec.report.eval_samples or parts.held_out.samples)
    if count == 0:
        return {}
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    targets = target_bytes = 0
    for first in range(0, count, spec.batch.global_size):
        size = min(spec.batch.global_size, count - first)
        for slot in make_batch_plan(size, spec.batch.micro_size, world.size).slots(world.rank):
            samples = parts.held_out.take(first, slot)
            total += parts.engine.evaluate(to_device(samples, world))
            targets += int(np.count_nonzero(samples.targets != IGNORE))
            target_bytes += int(
                np.count_nonzero((samples.targets >= 0) & (samples.targets < BYTE_VALUES))
            )
    targets, target_bytes = agree(world, targets, target_bytes)
    nats = sum_over_ranks(world, total)
    loss = nats / max(targets, 1)
    parts.recorder.record(
        EventKind.evaluated,
        step=cursor.step,
        loss=loss,
        bits_per_byte=nats / math.log(2) / max(target_bytes, 1) if parts.byte_level else None,
        samples=count,
    )
    return {"val_loss": loss}


def to_device(samples: Samples, world: World) -> Batch:
    """Arrays to tensors on this rank's device."""
    tensors = (torch.from_numpy(array) for array in (samples.inputs, samples.targets, samples.keys))
    return Batch(*(tensor.to(world.device, non_blocking=True) for tensor in tensors))
