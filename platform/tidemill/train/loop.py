"""The training loop: take, agree, accumulate, step, record; validate and save when due.

The loop knows no strategy, no storage and no Ray. Whatever it needs of them comes in through four
protocols, so a worker, a test and a benchmark run the same loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tidemill.plan.batch import BatchPlan, Slot, make_batch_plan
from tidemill.spec.progress import Cursor, EventKind, Recorder, State, World
from tidemill.spec.run import RunSpec
from tidemill.train.cadence import Cadence, CheckpointStore
from tidemill.train.engine import IGNORE, Batch, Engine
from tidemill.train.guard import Guard
from tidemill.train.optim import lr_at
from tidemill.train.probe import Probe
from tidemill.train.pulse import Phase, Pulse
from tidemill.train.ranks import SlotSums, agree

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

    @property
    def marks(self) -> Integers:
        """A word that stands for each use of a sample; none for the dummy of an empty slot."""
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


class Keeper(Protocol):
    """Keeps the newest state in the memory of processes, so that a new group can go on from it."""

    def tear(self) -> None:
        """From now on the live state is between two steps, and worth nothing until `commit`."""
        ...

    def commit(self, cursor: Cursor) -> None:
        """The live state is that of `cursor`; every rank calls it after every step."""
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
        keeper: Keeps the state of every step in memory.
        pulse: Told what this rank does.
        recorder: Where events go; only rank 0's is read.
        stop_requested: Whether somebody asked this rank to save and stop.
        save_requested: Whether somebody asked this rank for a checkpoint since the last call.
        leave_requested: Whether the group is to end here and form anew in another size.
    """

    engine: Engine
    guard: Guard
    stream: Stream
    held_out: Stream
    byte_level: bool
    store: CheckpointStore
    keeper: Keeper
    pulse: Pulse
    recorder: Recorder
    stop_requested: Callable[[], bool]
    save_requested: Callable[[], bool]
    leave_requested: Callable[[], bool]


def look_at(engine: Engine, guard: Guard) -> State:
    """The state of the run on this rank, as views of live memory."""
    state = engine.state()
    return State(state.tensors, state.scalars | {"guard": guard.state()})


def train(  # noqa: PLR0915 - one step reads from top to bottom
    spec: RunSpec, parts: Parts, world: World, cursor: Cursor
) -> Cursor:
    """Train from `cursor` to the last step, to a stop, or until the group is to form anew.

    A checkpoint is committed before it returns, but for a group that forms anew: what it holds in
    memory is enough. Every rank calls it.

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
    plan = deal(spec, spec.batch.global_size, world)
    slots = plan.slots(world.rank)
    pulse, probe = parts.pulse, Probe(world.device, parts.pulse)
    cadence = Cadence(spec, parts.store, lambda: look_at(engine, guard), parts.save_requested)
    metrics, began_s = {"loss": math.nan}, time.perf_counter()
    while cursor.step < spec.steps:
        started_s = time.perf_counter()
        pulse.beat(cursor.step, Phase.data)
        taken = [parts.stream.take(cursor.samples, slot) for slot in slots]
        probe.note(time.perf_counter() - started_s)
        valid = sum(int(np.count_nonzero(samples.targets != IGNORE)) for samples in taken)
        wishes = (parts.stop_requested(), parts.leave_requested(), cadence.asks(), cadence.saves())
        pulse.beat(cursor.step, Phase.agree)
        agreed = agree(world, valid, *tally(taken), *map(int, wishes))
        valid, count, digest, stopping, leaving, asked, busy = agreed
        pulse.beat(cursor.step, Phase.accumulate)
        weight = 1.0 / max(valid, 1)
        sums = SlotSums(world)
        sums.put(plan, list(_accumulate(engine, [to_device(one, world) for one in taken], weight)))
        lr = lr_at(spec.optim, cursor.step)
        pulse.beat(cursor.step, Phase.loss)
        # Before the update: whoever has taken the step also knows its loss.
        loss = sums.add_up() * weight
        pulse.beat(cursor.step, Phase.settle)
        parts.store.settle()
        pulse.beat(cursor.step, Phase.update)
        parts.keeper.tear()
        outcome = engine.step(lr)
        last = cursor.step + 1 == spec.steps
        reached = Cursor(step=cursor.step + 1, samples=cursor.samples + spec.batch.global_size)
        used = {"samples": reached.samples, "count": count, "digest": f"{digest % 2**64:016x}"}
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
                **used,
            )
        else:
            record(EventKind.used, step=cursor.step, **used)
        guard.note(outcome, cursor.step)
        cursor = reached
        pulse.beat(cursor.step, Phase.keep)
        parts.keeper.commit(cursor)
        metrics = {"loss": loss}
        every = spec.report.eval_every_steps
        if last or (every and cursor.step % every == 0):
            metrics |= evaluate(spec, parts, world, cursor)
        pulse.beat(cursor.step, Phase.save)
        cadence.after(cursor, metrics, asked=asked > 0, busy=busy > 0)
        if stopping and cursor.step < spec.steps:
            record(EventKind.stop_requested, step=cursor.step)
            break
        if leaving and cursor.step < spec.steps:
            record(EventKind.resizing, step=cursor.step)
            pulse.beat(cursor.step, Phase.leaving)
            return cursor
    pulse.beat(cursor.step, Phase.save)
    cadence.finish(cursor, metrics)
    if cursor.step < spec.steps:
        record(EventKind.stopped, step=cursor.step)
        return cursor
    seconds = time.perf_counter() - began_s
    record(EventKind.finished, step=cursor.step, loss=metrics["loss"], seconds=seconds)
    return cursor


def _accumulate(engine: Engine, batches: list[Batch], weight: float) -> Iterator[torch.Tensor]:
    """Forward and backward of a step's slots; their loss sums."""
    for number, batch in enumerate(batches, start=1):
        yield engine.accumulate(batch, weight, last=number == len(batches))


def evaluate(spec: RunSpec, parts: Parts, world: World, cursor: Cursor) -> dict[str, float]:
    """Measure the loss on held-out samples, always the same ones, and record it.

    Returns:
        It, as `val_loss`, nats per target; empty if no samples are held out.
    """
    count = min(parts.held_out.samples, spec.report.eval_samples or parts.held_out.samples)
    if count == 0:
        return {}
    sums = SlotSums(world)
    targets = target_bytes = 0
    for first in range(0, count, spec.batch.global_size):
        parts.pulse.beat(cursor.step, Phase.evaluate)
        size = min(spec.batch.global_size, count - first)
        plan, totals = deal(spec, size, world), list[torch.Tensor]()
        for slot in plan.slots(world.rank):
            samples = parts.held_out.take(first, slot)
            totals.append(parts.engine.evaluate(to_device(samples, world)))
            targets += int(np.count_nonzero(samples.targets != IGNORE))
            target_bytes += int(
                np.count_nonzero((samples.targets >= 0) & (samples.targets < BYTE_VALUES))
            )
        sums.put(plan, totals)
    parts.pulse.beat(cursor.step, Phase.evaluate)
    targets, target_bytes = agree(world, targets, target_bytes)
    nats = sums.add_up()
    loss = nats / max(targets, 1)
    parts.recorder.record(
        EventKind.evaluated,
        step=cursor.step,
        loss=loss,
        bits_per_byte=nats / math.log(2) / max(target_bytes, 1) if parts.byte_level else None,
        samples=count,
    )
    return {"val_loss": loss}


def tally(taken: Sequence[Samples]) -> tuple[int, int]:
    """How many samples this rank took, and the sum of their marks; int64, so it may wrap around."""
    marks = np.concatenate([samples.marks for samples in taken])
    return len(marks), int(marks.sum())


def deal(spec: RunSpec, samples: int, world: World) -> BatchPlan:
    """How so many samples are dealt over the ranks of `world`."""
    return make_batch_plan(samples, spec.batch.micro_size, world.size, fixed=spec.bitwise)


def to_device(samples: Samples, world: World) -> Batch:
    """Arrays to tensors on this rank's device."""
    tensors = (torch.from_numpy(array) for array in (samples.inputs, samples.targets, samples.keys))
    return Batch(*(tensor.to(world.device, non_blocking=True) for tensor in tensors))
