"""What a fresh run starts from: nothing, another run's checkpoint, or weights from elsewhere.

A run has one origin for life. Once it has a checkpoint of its own it goes on from that, so the same
command resumes it; a command that names another origin is refused, because it would be ignored.
Needs no torch: workers find out whether tensors fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidemill.checkpoint.foreign import Weights, read_weights
from tidemill.checkpoint.manifest import Manifest, committed, parse_name, read_manifest
from tidemill.errors import CheckpointError, CorruptCheckpoint, SpecError, StorageError
from tidemill.plan.run import count_parameters
from tidemill.spec.base import differences
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, locate, read_bytes

INIT_FROM = "checkpoint.init_from"
FROM_RUN = "checkpoint.from_run"
FROM_STEP = "checkpoint.from_step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a fresh run is to start from; nothing if both are None.

    Attributes:
        fork: The manifest of another run's checkpoint.
        weights: What safetensors files say they hold.
    """

    fork: Manifest | None = None
    weights: Weights | None = None


def resolve_origin(spec: RunSpec) -> RunSpec:
    """Make the path to weights one that means the same in every process.

    Raises:
        SpecError: It is no place at all, or a run is to start from itself.
    """
    policy = spec.checkpoint
    if policy.from_run == spec.name:
        raise SpecError(
            FROM_RUN,
            f"{spec.name} cannot start from itself",
            "give this run another name=, or remove it to go on",
        )
    if not policy.init_from:
        return spec
    try:
        place = locate(policy.init_from)
    except StorageError as error:
        raise SpecError(INIT_FROM, str(error), "name a path or a URI") from error
    return replace(spec, checkpoint=replace(policy, init_from=place.uri))


def require_same_origin(spec: RunSpec, run: Location, newest: Manifest) -> None:
    """Refuse to go on with a run that was started from something else than is asked for now.

    Raises:
        CheckpointError: Says what it was started from.
    """
    policy, origin = spec.checkpoint, newest.origin
    if policy.from_run:
        steps = (0, origin.get("step"))
        same = origin.get("run") == policy.from_run and policy.from_step in steps
    elif policy.init_from:
        same = "weights" in origin and _place(origin["weights"]) == _place(policy.init_from)
    else:
        same = True
    if not same:
        key = FROM_RUN if policy.from_run else INIT_FROM
        raise CheckpointError(
            f"{key}: {run} goes on from its own checkpoints, and it was started {_told(origin)}; "
            f"remove {key}, or give this run another name="
        )


def find_origin(spec: RunSpec, storage: Location) -> tuple[RunSpec, Found]:
    """Look at what a fresh run is to start from.

    Args:
        spec: The run, resolved.
        storage: Where runs are.

    Returns:
        The run, `checkpoint.from_step` set to the step that was found, so that every attempt
        starts from the same one; and what was found.

    Raises:
        CheckpointError: There is no such run, checkpoint or file, it cannot be read, or it is of
            another model.
        SpecError: The run would be done before it starts.
    """
    policy = spec.checkpoint
    if policy.init_from:
        return spec, Found(weights=read_weights(locate(policy.init_from)))
    if not policy.from_run:
        return spec, Found()
    found = _find_checkpoint(storage / policy.from_run, policy.from_step)
    _require_same_model(spec, found)
    step = found.cursor.step
    if spec.steps <= step:
        raise SpecError(
            "steps",
            f"{spec.steps} are none to take after the {step} of {policy.from_run}",
            f"use more than {step}, or an earlier {FROM_STEP}",
        )
    return replace(spec, checkpoint=replace(policy, from_step=step)), Found(fork=found)


def require_fit(spec: RunSpec, storage: Location, found: Found, vocab: int) -> None:
    """Refuse what cannot fit the model that this run will have on its corpus.

    Args:
        spec: The run.
        storage: Where runs are.
        found: What `find_origin` found.
        vocab: Number of distinct tokens of the corpus.

    Raises:
        CheckpointError: Says both sizes.
    """
    name = spec.checkpoint.from_run
    learned = _vocab_of(storage / name) if found.fork is not None else None
    if learned not in (None, vocab):
        raise CheckpointError(
            f"{FROM_RUN}: {name} knows {learned} distinct tokens, and data has {vocab}; use data "
            "of the same tokens, or start from nothing"
        )
    size = count_parameters(spec.model, vocab=vocab)
    if found.weights is not None and size is not None:
        held = sum(tensor.numel for tensor in found.weights.tensors.values())
        if held != size:
            raise CheckpointError(
                f"{INIT_FROM}: {spec.checkpoint.init_from} holds {held:,} weights, and the model "
                f"has {size:,} on this data; use the model and the tokens they are for"
            )


def of_step(checkpoints: Sequence[Location], step: int, key: str) -> list[Location]:
    """Those of one step, of which there may be several: one of each attempt that got there.

    Args:
        checkpoints: Directories.
        step: The step.
        key: The key that asks for it.

    Raises:
        CheckpointError: There is none; lists the steps there are.
    """
    steps = [(parse_name(place.name) or (0, 0))[0] for place in checkpoints]
    if step not in steps:
        there = ", ".join(str(found) for found in sorted(set(steps)))
        run = checkpoints[0].parent.parent
        raise CheckpointError(
            f"{key}: {run} has no checkpoint of step {step}; there are those of {there}"
        )
    return [place for place, found in zip(checkpoints, steps, strict=True) if found == step]


def describe_origin(spec: RunSpec) -> str:
    """What a fresh run starts from, to be put behind its name; empty for nothing."""
    policy = spec.checkpoint
    if policy.from_run:
        return f" from step {policy.from_step} of {policy.from_run}"
    return f" from the weights in {locate(policy.init_from)}" if policy.init_from else ""


def _vocab_of(run: Location) -> int | None:
    """How many distinct tokens a run was trained on; None if that is not to be found."""
    try:
        return json.loads(read_bytes(run / "corpus.json"))["vocab"]
    except (StorageError, ValueError, KeyError, TypeError):
        return None  # workers compare the tensors


def _find_checkpoint(source: Location, step: int) -> Manifest:
    """The newest checkpoint of a run, or the one of a step, whose manifest can be read."""
    places = committed(source)
    if not places:
        raise CheckpointError(
            f"{FROM_RUN}: {source} has no checkpoint; name a run in the same storage that has one"
        )
    asked = of_step(places, step, FROM_STEP) if step else places
    problems: list[str] = []
    for place in asked:
        try:
            return read_manifest(place)
        except CorruptCheckpoint as error:
            problems.append(str(error))
    raise CheckpointError(
        f"{FROM_STEP if step else FROM_RUN}: the checkpoint cannot be read ({problems[0]}); name "
        "another step or run"
    )


def _require_same_model(spec: RunSpec, found: Manifest) -> None:
    """Refuse what cannot fit; rate, data, batch, precision and seed are free to change."""
    now = spec.identity()
    differ = differences(found.identity.get("model"), now["model"], "model")
    if differ:
        told = "; ".join(f"{key}: {old!r} there, {new!r} here" for key, old, new in differ)
        raise CheckpointError(
            f"{FROM_RUN}: {found.run} has another model ({told}); use its model, or start from "
            "nothing"
        )
    if _moments(found.identity.get("optim") or {}) != _moments(now["optim"]):
        raise CheckpointError(
            f"{FROM_RUN}: {found.run} has moments of another optimizer; use its optim, or export "
            f"its weights with jobs/export.py and start from them with {INIT_FROM}"
        )


def _moments(optim: Mapping[str, Any]) -> tuple[Any, bool]:
    """What decides which moments an optimizer keeps."""
    return optim.get("variant"), bool(optim.get("momentum"))


def _place(uri: str) -> str:
    return str(locate(uri))


def _told(origin: Mapping[str, Any]) -> str:
    if "run" in origin:
        return f"from step {origin.get('step')} of {origin['run']}"
    return f"from the weights in {_place(origin['weights'])}" if "weights" in origin else "anew"
