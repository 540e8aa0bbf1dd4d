"""Of several failed ranks the one to blame is told, with its traceback, whatever Ray wraps it in.

What Ray raises is made by Ray's own code from what its workers report, because which parts of an
exception survive the way is exactly what must not be assumed.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator, Mapping

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from tidemill.errors import (
    CheckpointError,
    CorruptCheckpoint,
    DataError,
    SpecError,
    StorageError,
    TidemillError,
    TrainingError,
)
from tidemill.launch.failure import explain_failure

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"


class DistBackendError(RuntimeError):
    """As torch calls it."""


def raised_by_ray(errors: Mapping[int, Exception]) -> WorkerGroupError:
    """What `fit` raises when ranks failed with `errors`, after the way through Ray's actors."""
    statuses = {
        rank: WorkerStatus(running=False, error=pickle.loads(pickle.dumps(_reported(error))))  # noqa: S301
        for rank, error in errors.items()
    }
    made = WorkerGroupPollStatus(statuses).get_worker_group_error()
    return pickle.loads(pickle.dumps(made))  # noqa: S301


def _reported(error: Exception) -> Exception:
    """As a worker reports it: with its traceback, unless it is what Ray says of a lost worker."""
    if isinstance(error, WorkerHealthCheckFailedError):
        return error
    try:
        raise error
    except type(error):
        return UserExceptionWithTraceback(error, traceback_str=traceback.format_exc())


def explained(errors: Mapping[int, Exception]) -> TrainingError:
    error = explain_failure(raised_by_ray(errors))
    assert isinstance(error, TrainingError)
    return error


# --- who is to blame -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bystander",
    [
        RuntimeError(f"{CLOSED} [127.0.0.1]:4242"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms"),
        RuntimeError("[gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer"),
        DistBackendError("NCCL communicator was aborted on rank 0."),
    ],
    ids=str,
)
def test_a_rank_with_a_reason_of_its_own_is_told(bystander: Exception) -> None:
    error = explained({0: bystander, 1: ValueError("the tide went out")})
    assert str(error) == "rank 1 failed: ValueError: the tide went out"
    assert error.rank == 1
    assert error.exit_code == 1


def test_of_several_the_lowest_rank_is_told() -> None:
    errors = {2: ValueError("two"), 1: KeyError("one"), 0: RuntimeError(CLOSED)}
    assert str(explained(errors)) == "rank 1 failed: KeyError: 'one'"


def test_if_all_lost_each_other_the_first_is_told() -> None:
    errors = {1: RuntimeError(f"b {CLOSED}"), 0: RuntimeError(f"a {CLOSED}")}
    assert str(explained(errors)) == f"rank 0 failed: RuntimeError: a {CLOSED}"


@pytest.mark.parametrize(
    "own",
    [
        FileNotFoundError("/data/igloo.txt"),
        ConnectionResetError("Connection reset by peer"),
        ValueError("nccl is no backend on a CPU"),
    ],
    ids=str,
)
def test_words_alone_make_no_bystander(own: Exception) -> None:
    error = explained({0: RuntimeError(CLOSED), 1: own})
    assert str(error) == f"rank 1 failed: {type(own).__name__}: {own}"


def test_a_runtime_error_that_is_no_collective_is_told() -> None:
    errors = {0: RuntimeError(CLOSED), 1: RuntimeError("CUDA out of memory")}
    assert str(explained(errors)) == "rank 1 failed: RuntimeError: CUDA out of memory"


def test_a_worker_that_died_is_told_by_its_death() -> None:
    lost = WorkerHealthCheckFailedError(
        "A worker health check failed.\nWorker info: many lines", ActorDiedError()
    )
    error = explained({0: RuntimeError(CLOSED), 1: lost})
    assert str(error) == (
        "rank 1 failed: ActorDiedError: The actor died unexpectedly before finishing this task."
    )
    assert "Worker info: many lines" in error.details


# --- what is told ----------------------------------------------------------------------------


def test_the_traceback_is_that_of_the_rank_and_of_no_other() -> None:
    error = explained({0: RuntimeError(CLOSED), 1: ValueError("low\nwater"), 3: KeyError("three")})
    assert str(error) == "rank 1 failed: ValueError: low"
    assert error.details.startswith("Traceback (most recent call last):\n")
    assert "in _reported" in error.details
    assert error.details.rstrip().endswith("ValueError: low\nwater")
    assert "three" not in error.details
    assert "Error Snippet" not in error.details


def test_rank_10_is_not_rank_1() -> None:
    error = explained({10: KeyError("ten"), 1: ValueError("one")})
    assert error.details.rstrip().endswith("ValueError: one")


def test_ranks_that_failed_alike_share_a_traceback() -> None:
    errors = {rank: ValueError(f"rank {rank} ran dry") for rank in (10, 11, 1)}
    error = explained({0: RuntimeError(CLOSED), **errors})
    assert str(error) == "rank 1 failed: ValueError: rank 1 ran dry"
    assert error.details.rstrip().endswith("ran dry")


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert str(explained({0: ZeroDivisionError()})) == "rank 0 failed: ZeroDivisionError"


# --- errors of ours --------------------------------------------------------------------------


def family(cls: type[TidemillError]) -> Iterator[type[TidemillError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from family(child)


OWN: list[TidemillError] = [
    SpecError("memory.recompute", "the model has no blocks", "use memory.recompute=none"),
    DataError("data.paths: gone"),
    StorageError("cannot write: no space is left on the disk"),
    CheckpointError("no checkpoint is whole"),
    CorruptCheckpoint("rank-00000.bin: cut short"),
    TrainingError("the loss is not finite", "Traceback: ...", 3),
]


def test_every_error_of_ours_is_looked_at() -> None:
    assert {type(error) for error in OWN} == set(family(TidemillError)) - {TidemillError}


@pytest.mark.parametrize("own", OWN, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_travels_as_itself(own: TidemillError) -> None:
    error = explain_failure(raised_by_ray({0: RuntimeError(CLOSED), 1: own}))
    assert type(error) is type(own)
    assert str(error) == str(own)
    assert vars(error) == vars(own)
    assert error.exit_code == own.exit_code
    assert explain_failure(own) is own


# --- Ray's own failures ----------------------------------------------------------------------


def test_a_failed_controller_is_told() -> None:
    error = explain_failure(ControllerError(OSError("no such image\nand more")))
    assert isinstance(error, TrainingError)
    assert str(error) == "Ray could not run the workers: OSError: no such image"
    assert error.details == "no such image\nand more"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (TrainingFailedError("gave\nup"), "Ray gave up: TrainingFailedError: gave"),
        (ActorDiedError(), "Ray gave up: ActorDiedError: The actor died unexpectedly"),
        (RayTaskError("f", "trace", ValueError("x"), "p", 1, "127.0.0.1"), "Ray gave up: RayTask"),
        (WorkerGroupError("nobody", {}), "Ray gave up: WorkerGroupError: Training failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_else_ray_raises_is_told(raised: Exception, told: str) -> None:
    error = explain_failure(raised)
    assert isinstance(error, TrainingError)
    assert str(error).startswith(told)
    assert error.details == str(raised)


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_a_bug_in_the_driver_stays_what_it_is(bug: BaseException) -> None:
    with pytest.raises(type(bug)) as caught:
        explain_failure(bug)
    assert caught.value is bug
