"""RunPlan: what a run will be, in numbers, before anything is started.

All of it follows from the spec and two facts about the corpus, so that a laptop can say how large a
model is and how often it will see each token without the libraries that train it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.errors import SpecError
from tidemill.plan.batch import BatchPlan, make_batch_plan
from tidemill.spec.checkpoint import CheckpointSpec, Verify
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import Offload, Recompute
from tidemill.spec.training import CustomModelSpec, GptSpec, ModelSpec, SyntheticSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What follows from a run's spec and its corpus.

    Attributes:
        spec: The spec it follows from.
        vocab: Number of distinct tokens.
        train_tokens: Tokens of one epoch.
        parameters: Elements of all weights, shared ones counted once; None for a custom model.
        batch: How a step is dealt over `scale.workers` ranks.
        step_tokens: Tokens of one optimizer step, over all ranks.
        total_tokens: Tokens of the whole run.
    """

    spec: RunSpec
    vocab: int
    train_tokens: int
    parameters: int | None
    batch: BatchPlan
    step_tokens: int
    total_tokens: int

    @property
    def epochs(self) -> float:
        """How often the run sees each token it trains on."""
        return self.total_tokens / self.train_tokens


def make_run_plan(spec: RunSpec, *, vocab: int, train_tokens: int) -> RunPlan:
    """Work out a run.

    Args:
        spec: The run.
        vocab: Number of distinct tokens of its corpus.
        train_tokens: Tokens of its corpus to train on; made-up data, which has none of its own,
            counts its samples at the run's sequence length.

    Raises:
        SpecError: There is nothing to train on.
    """
    if isinstance(spec.data, SyntheticSpec):
        train_tokens = spec.data.samples * spec.batch.sequence
    if train_tokens < 1:
        raise SpecError("data", "holds no tokens to train on", "name more files or hold out less")
    step_tokens = spec.batch.global_size * spec.batch.sequence
    return RunPlan(
        spec=spec,
        vocab=vocab,
        train_tokens=train_tokens,
        parameters=count_parameters(spec.model, vocab=vocab),
        batch=make_batch_plan(
            spec.batch.global_size, spec.batch.micro_size, spec.scale.workers, fixed=spec.bitwise
        ),
        step_tokens=step_tokens,
        total_tokens=spec.steps * step_tokens,
    )


def count_parameters(model: ModelSpec, *, vocab: int) -> int | None:
    """Count a model's weights by formula.

    A block has 4 width^2 for attention, 8 width^2 for its MLP and two norms; one more norm comes
    before the output, which shares the weights of the embedding. Nothing has a bias.

    Args:
        model: The model.
        vocab: Number of distinct tokens.

    Returns:
        Elements of all weights, or None where only the user's code knows.
    """
    match model:
        case GptSpec(layers=layers, width=width):
            return vocab * width + layers * (12 * width**2 + 2 * width) + width
        case _:
            return None


def describe(plan: RunPlan) -> list[str]:
    """Say a plan in a few lines, for a person about to start it."""
    spec, batch, scale = plan.spec, plan.spec.batch, plan.spec.scale
    worker = "GPU worker" if scale.gpus_per_worker else "CPU worker"
    largest = -(-batch.global_size // plan.batch.count)
    how = [_of(scale.workers, worker), spec.strategy.name, spec.precision.kind.value]
    if spec.memory.recompute is Recompute.blocks:
        how.append("recomputing blocks")
    if spec.memory.offload is not Offload.none:
        what = "all state" if spec.memory.offload is Offload.all else "optimizer state"
        how.append(f"{what} in host memory")
    if spec.bitwise:
        how.append("the same bits at any number of workers")
    said = {
        f"run {spec.name}": [_of(spec.steps, "step"), *how],
        "model": [*_sizes(plan), f"vocabulary {plan.vocab:,}"],
        "data": [
            f"{plan.train_tokens:,} tokens an epoch",
            f"{plan.total_tokens:,} tokens this run",
            f"{plan.epochs:.3g} epochs",
        ],
        "batch": [
            f"{_of(batch.global_size, 'sample')} x {batch.sequence:,} tokens a step",
            f"each worker takes {_of(plan.batch.accumulate, 'slot')} of up to {largest:,}",
        ],
        "checkpoints": _saves(spec),
    }
    if origin := _origin(spec.checkpoint):
        said["starts from"] = [origin, "unless it has checkpoints of its own"]
    return [f"{subject}: {', '.join(facts)}" for subject, facts in said.items()]


def _saves(spec: RunSpec) -> list[str]:
    """When checkpoints are made and which of them stay, as far as it is chosen."""
    chosen = spec.checkpoint
    due = [_of(chosen.every_steps, "step")] if chosen.every_steps else []
    due += [_span(chosen.every_s)] if chosen.every_s else []
    kept = [f"newest {chosen.keep_last}"]
    kept += [f"best {chosen.keep_best}"] if chosen.keep_best else []
    kept += [f"one per {_of(chosen.keep_every_steps, 'step')}"] if chosen.keep_every_steps else []
    facts = [f"every {' or '.join(due)}"] if due else []
    place = spec.storage.partition("?")[0] if "://" in spec.storage else spec.storage
    facts += ["at the end", f"{' + '.join(kept)} kept in {place.rstrip('/')}/{spec.name}"]
    if chosen.near_gib:
        near = chosen.near_every_steps
        when = f"every {_of(near, 'step')}" if near else "of each"
        facts.append(f"near copies {when} in up to {chosen.near_gib:g} GiB a node")
    if chosen.verify is Verify.size:
        facts.append("verified by size alone")
    return facts


def _origin(chosen: CheckpointSpec) -> str:
    if chosen.init_from:
        return f"weights in {chosen.init_from}"
    if not chosen.from_run:
        return ""
    which = f"step {chosen.from_step:,}" if chosen.from_step else "the newest checkpoint"
    return f"{which} of run {chosen.from_run}"


def _span(seconds: float) -> str:
    """Seconds in the largest unit that holds them without a rest."""
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            return _of(int(seconds // size), unit)
    return f"{seconds:g} second" if seconds == 1 else f"{seconds:g} seconds"


def _sizes(plan: RunPlan) -> list[str]:
    match plan.spec.model:
        case GptSpec() as gpt:
            counted = f"{plan.parameters or 0:,} parameters"
            return [counted, f"{gpt.layers} layers", f"{gpt.heads} heads", f"width {gpt.width:,}"]
        case CustomModelSpec() as custom:
            return [custom.factory]
        case other:
            return [type(other).__name__]


def _of(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
