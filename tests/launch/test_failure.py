"""Of several failed ranks the one to blame is told, with its traceback, whatever Ray wraps it in.

What Ray raises is made by Ray's own code from what its workers report, because which parts of an
exception survive the way is exactly what must not be assumed.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ray.core.generated import common_pb2
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayTaskError,
)
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from tidemill.errors import (
    CheckpointError,
    CorruptCheckpoint,
    DataError,
    HopelessError,
    SpecError,
    StorageError,
    TidemillError,
    TrainingError,
)
from tidemill.launch.failure import (
    CondemnedError,
    diagnose,
)
from tidemill.launch.judge import Fault

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
    error = diagnose(raised_by_ray(errors)).error
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
        "rank 1 was lost: The actor died unexpectedly before finishing this task."
    )
    assert "Worker info: many lines" in error.details


# --- why it happened -------------------------------------------------------------------------

NODE = "31089b1e7fce43bd96ba391a31be4d70fadeda6364266587ac1a986f"
WORKER_DIED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage"
)
NODE_DIED = (
    f"The actor died because its node has died. Node Id: {NODE}\n"
    "\tthe actor's node was terminated unexpectedly: health check failed"
)
RAN_OUT = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    f"192.0.2.2, ID: {NODE}) was 1.47GB used / 23.54GB limit (0.062234)\n"
)


def died(message: str, reason: str = "UNEXPECTED_TERMINATION") -> ActorDiedError:
    """As Ray makes it of what its cluster knows; the messages are what it says in each case."""
    ray: Any = common_pb2
    context = ray.ActorDiedErrorContext(
        error_message=message,
        class_name="RayTrainWorker",
        actor_id=bytes(16),
        node_ip_address="192.0.2.2",
        pid=4242,
        node_death_info=ray.NodeDeathInfo(reason=reason),
    )
    error = ActorDiedError(context)
    error.args = ()  # which Ray knows how to send, and pickle does not
    return error


def unreached(failure: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: x", failure)


@pytest.mark.parametrize(
    ("lost", "fault", "node", "told"),
    [
        (
            died(WORKER_DIED),
            Fault.kill,
            "",
            f"rank 1 was lost: {WORKER_DIED.partition('. Some')[0]}",
        ),
        (died(NODE_DIED), Fault.kill, NODE, "rank 1 was lost: node 31089b1e7fce died"),
        (
            died(NODE_DIED, "AUTOSCALER_DRAIN_PREEMPTED"),
            Fault.preempted,
            NODE,
            "rank 1 was lost: node 31089b1e7fce was preempted",
        ),
        (
            OutOfMemoryError(RAN_OUT),
            Fault.oom,
            NODE,
            "rank 1 was lost: node 31089b1e7fce ran out of memory",
        ),
        (
            ActorUnavailableError("connection refused", bytes(16)),
            Fault.kill,
            "",
            f"rank 1 was lost: The actor {'0' * 32} is unavailable: connection refused",
        ),
        (
            CondemnedError("rank 1 hangs in step 3 (data)", Fault.hang),
            Fault.hang,
            "",
            "rank 1 hangs in step 3 (data)",
        ),
    ],
    ids=["process", "node", "preempted", "memory", "unavailable", "hang"],
)
def test_a_lost_rank_is_told_with_its_node_and_why(
    lost: Exception, fault: Fault, node: str, told: str
) -> None:
    failure = diagnose(raised_by_ray({0: RuntimeError(CLOSED), 1: unreached(lost)}))
    assert (failure.rank, failure.fault, failure.node) == (1, fault, node)
    assert str(failure.error) == told
    assert failure.judged
    known = diagnose(raised_by_ray({1: unreached(lost)}), {0: "aa", 1: "bb"})
    assert known.node == "bb"


@pytest.mark.parametrize(
    ("lost", "fault"),
    [
        (unreached(died(WORKER_DIED)), Fault.preempted),
        (unreached(died(NODE_DIED)), Fault.preempted),
        (unreached(OutOfMemoryError(RAN_OUT)), Fault.oom),
        (ValueError("a bug"), Fault.error),
    ],
    ids=["process", "node", "memory", "bug"],
)
def test_a_loss_that_was_announced_is_a_preemption(lost: Exception, fault: Fault) -> None:
    raised = raised_by_ray({1: lost})
    assert diagnose(raised, {0: "aa", 1: "bb"}, {"bb"}).fault is fault
    assert diagnose(raised, {0: "aa", 1: "bb"}, {"aa"}).fault is not Fault.preempted


def test_a_rank_that_only_lost_another_blames_nobody() -> None:
    raised = raised_by_ray({0: RuntimeError(CLOSED)})
    assert diagnose(raised, {0: "aa", 1: "bb"}).fault is Fault.kill
    assert diagnose(raised, {0: "aa", 1: "bb"}, {"bb"}).fault is Fault.preempted


def told_by_worker(what: str) -> TrainingError:
    """As `worker` sends an exception of somebody else."""
    return TrainingError(f"rank 1 failed: {what}", "Traceback: ...", 1)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (told_by_worker("ValueError: a bug"), Fault.error),
        (told_by_worker("OutOfMemoryError: CUDA out of memory. Tried to allocate"), Fault.oom),
        (told_by_worker("MemoryError"), Fault.oom),
        (told_by_worker("RuntimeError: CUDA error: out of memory"), Fault.oom),
        (told_by_worker("RuntimeError: DefaultCPUAllocator: can't allocate memory"), Fault.oom),
        (told_by_worker("ValueError: the shop is out of memory cards"), Fault.error),
        (told_by_worker(f"RuntimeError: {CLOSED}"), Fault.kill),
        (RuntimeError("CUDA out of memory"), Fault.oom),
        (TrainingError("a snapshot was lost while it was read"), Fault.error),
        (HopelessError("20 steps in a row were skipped"), Fault.refusal),
        (StorageError("no space is left on the disk"), Fault.refusal),
        (SpecError("a", "b", "c"), Fault.refusal),
    ],
    ids=str,
)
def test_what_a_rank_says_tells_why(error: Exception, fault: Fault) -> None:
    assert diagnose(raised_by_ray({1: error})).fault is fault


@pytest.mark.parametrize(
    ("raised", "fault", "judged"),
    [
        (ActorDiedError(), Fault.kill, False),
        (TrainingFailedError("gave up"), Fault.error, False),
        (ControllerError(WorkerGroupStartupFailedError("a process ended")), Fault.kill, True),
        (ControllerError(ActorDiedError()), Fault.kill, True),
        (ControllerError(OSError("no such image")), Fault.error, True),
        (ControllerError(HopelessError("failed twice")), Fault.refusal, True),
        (DataError("gone"), Fault.refusal, True),
    ],
    ids=repr,
)
def test_a_failure_of_ray_itself_has_a_reason_too(
    raised: Exception, fault: Fault, judged: bool
) -> None:
    failure = diagnose(pickle.loads(pickle.dumps(raised)))  # noqa: S301
    assert (failure.fault, failure.judged, failure.rank) == (fault, judged, None)


def test_a_verdict_of_the_controller_is_passed_on_as_it_is() -> None:
    verdict = HopelessError("failed twice in the same way at step 3", "Traceback: ...", 1)
    raised = pickle.loads(pickle.dumps(ControllerError(verdict)))  # noqa: S301
    error = diagnose(raised).error
    assert (type(error), str(error), vars(error)) == (HopelessError, str(verdict), vars(verdict))


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
    """What a rank may raise; it asks no provider."""
    yield cls
    for child in cls.__subclasses__():
        if not child.__module__.startswith("tidemill.providers."):
            yield from family(child)


OWN: list[TidemillError] = [
    SpecError("memory.recompute", "the model has no blocks", "use memory.recompute=none"),
    DataError("data.paths: gone"),
    StorageError("cannot write: no space is left on the disk"),
    CheckpointError("no checkpoint is whole"),
    CorruptCheckpoint("rank-00000.bin: cut short"),
    TrainingError("the loss is not finite", "Traceback: ...", 3),
    HopelessError("failed twice in the same way", "Traceback: ...", 3),
]


def test_every_error_of_ours_is_looked_at() -> None:
    assert {type(error) for error in OWN} == set(family(TidemillError)) - {TidemillError}


@pytest.mark.parametrize("own", OWN, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_travels_as_itself(own: TidemillError) -> None:
    error = diagnose(raised_by_ray({0: RuntimeError(CLOSED), 1: own})).error
    assert type(error) is type(own)
    assert str(error) == str(own)
    assert vars(error) == vars(own)
    assert error.exit_code == own.exit_code
    assert diagnose(own).error is own


# --- Ray's own failures ----------------------------------------------------------------------


def test_a_failed_controller_is_told() -> None:
    error = diagnose(ControllerError(OSError("no such image\nand more"))).error
    assert isinstance(error, TrainingError)
    assert str(error) == "Ray could not run the workers: OSError: no such image"
    assert error.details == "no such image\nand more"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (TrainingFailedError("gave\nup"), "Ray gave up: TrainingFailedError: gave"),
        (ActorDiedError(), "the controller of the run was lost: The actor died unexpectedly"),
        (RayTaskError("f", "trace", ValueError("x"), "p", 1, "127.0.0.1"), "Ray gave up: RayTask"),
        (WorkerGroupError("nobody", {}), "Ray gave up: WorkerGroupError: Training failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_else_ray_raises_is_told(raised: Exception, told: str) -> None:
    error = diagnose(raised).error
    assert isinstance(error, TrainingError)
    assert str(error).startswith(told)
    assert error.details == str(raised)


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_a_bug_in_the_driver_stays_what_it_is(bug: BaseException) -> None:
    with pytest.raises(type(bug)) as caught:
        diagnose(bug)
    assert caught.value is bug
