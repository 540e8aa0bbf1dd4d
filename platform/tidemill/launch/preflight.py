"""Preflight: everything about a run that can fail before a worker exists, without Ray or torch.

It resolves paths in the driver, decides whether the run is new, goes on or is done already, looks
at what a new one starts from, and has the corpus ready. A refusal costs a second on a laptop and
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from tidemill.checkpoint.manifest import Manifest, committed, read_manifest
from tidemill.data.corpus import Corpus, prepare_corpus
from tidemill.errors import CheckpointError, CorruptCheckpoint, SpecError, StorageError
from tidemill.launch.origin import (
    Found,
    describe_origin,
    find_origin,
    require_fit,
    require_same_origin,
    resolve_origin,
)
from tidemill.report.events import next_attempt
from tidemill.spec.base import differences
from tidemill.spec.run import Resume, RunSpec
from tidemill.spec.training import CustomModelSpec
from tidemill.storage import Location, check_writable, exists, locate

RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class Start(StrEnum):
    """What training a run now would mean."""

    fresh = "fresh"
    resume = "resume"
    finished = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """A run that is ready to be started.

    Attributes:
        spec: The run, its storage resolved to an absolute path or a URI.
        run: Its directory.
        corpus: What it learns from.
        launch: Number of the first attempt that this launch may make.
        start: Whether it is new, goes on, or is done already.
        step: Steps that the checkpoint it starts from has taken: its newest, or for a new run that
            of another run; 0 if there is none.
    """

    spec: RunSpec
    run: Location
    corpus: Corpus
    launch: int
    start: Start
    step: int

    @property
    def message(self) -> str:
        """One line for people."""
        match self.start:
            case Start.fresh:
                return f"starting {self.run}{describe_origin(self.spec)}"
            case Start.resume:
                return f"resuming {self.run} at step {self.step}"
            case Start.finished:
                optim = self.spec.optim
                return (
                    f"{self.run} has finished its {self.step} steps already; for more of them add "
                    f"steps={2 * self.step} optim.decay_steps={optim.decay_steps} "
                    f"optim.warmup_steps={optim.warmup_steps}, to train anew use another name="
                )


def preflight(spec: RunSpec) -> Preflight:
    """Check `spec` against storage and corpus.

    Raises:
        SpecError: A key does not fit where the run is started.
        DataError: The corpus is missing, empty or unreadable.
        StorageError: The storage cannot be reached or written.
        CheckpointError: The run's checkpoints do not fit it, or there are none where there must be;
            or what a new run is to start from cannot be read, or is of another model.
    """
    if RAY_JOB_VARIABLE in os.environ and "://" not in spec.storage and spec.storage[0] not in "/~":
        raise SpecError(
            "storage",
            f"{spec.storage!r} is relative, and Ray deletes a job's working directory after it",
            "use an absolute path or a URI that all nodes see, e.g. storage=s3://bucket/runs",
        )
    if isinstance(spec.model, CustomModelSpec):
        _check_factory(spec.model)
    spec = resolve_origin(spec)
    origin = Found()
    with _naming_storage():
        storage = locate(spec.storage)
        spec = replace(spec, storage=storage.uri)
        run = storage / spec.name
        newest = _newest_readable(run)
        _check_resume(spec, run, newest)
        if newest is not None:
            _check_identity(spec, run, newest)
            require_same_origin(spec, run, newest)
        else:
            spec, origin = find_origin(spec, storage)
        check_writable(storage)
        launch = next_attempt(run)
    corpus = prepare_corpus(spec.data, storage, sequence=spec.batch.sequence)
    if newest is not None and newest.corpus_digest != corpus.digest:
        raise CheckpointError(
            f"data: {run} was trained on another corpus (digest {newest.corpus_digest[:12]}, now "
            f"{corpus.digest[:12]}); give it the same files, or this run another name="
        )
    require_fit(spec, storage, origin, corpus.vocab)
    reached = newest or origin.fork
    step = reached.cursor.step if reached is not None else 0
    start = Start.fresh if newest is None else Start.resume
    return Preflight(
        spec=spec,
        run=run,
        corpus=corpus,
        launch=launch,
        start=Start.finished if step >= spec.steps else start,
        step=step,
    )


def _check_factory(model: CustomModelSpec) -> None:
    """Look for the package without importing it: it may import torch, or want a GPU."""
    package = model.factory.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise SpecError(
            "model.factory",
            f"there is no package {package} to take {model.factory} from",
            "put it on PYTHONPATH of driver and workers, or install it",
        )


@contextlib.contextmanager
def _naming_storage() -> Iterator[None]:
    """Name the key in whatever storage complains of."""
    try:
        yield
    except StorageError as error:
        raise StorageError(
            f"storage: {error}; choose a storage= that this machine can read and write"
        ) from error


def _newest_readable(run: Location) -> Manifest | None:
    """The newest manifest that can be read; workers find out whether its tensors can."""
    problems: list[str] = []
    for directory in committed(run):
        try:
            return read_manifest(directory)
        except CorruptCheckpoint as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"resume: no checkpoint of {run} is readable ({problems[0]}); restore one, or start "
            "anew under another name="
        )
    return None


def _check_resume(spec: RunSpec, run: Location, newest: Manifest | None) -> None:
    if spec.resume is Resume.must and newest is None:
        raise CheckpointError(
            f"resume: resume=must and {run} has no checkpoint; check name= and storage=, or use "
            "resume=auto"
        )
    if spec.resume is Resume.never and (newest is not None or exists(run)):
        raise CheckpointError(
            f"resume: resume=never and {run} exists already; use another name=, or resume=auto"
        )


def _check_identity(spec: RunSpec, run: Location, newest: Manifest) -> None:
    """Refuse to continue other mathematics than the checkpoint's, and say what differs."""
    if newest.digest == spec.digest():
        return
    told = "; ".join(
        f"{key}: {old!r} then, {new!r} now"
        for key, old, new in differences(newest.identity, spec.identity())
    )
    raise CheckpointError(
        f"name: {run} was trained as something else ({told or 'by another version of Tidemill'}); "
        "put the old values back, or give this run another name="
    )
