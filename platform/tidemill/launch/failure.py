"""Which of several failed ranks is to blame, and what to tell about it.

When one rank dies the others fail too, in the collective they were in. A rank that failed for a
reason of its own is told first; its traceback is told once, without Ray's frames around it.
"""

from __future__ import annotations

import re

from ray.exceptions import RayError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from tidemill.errors import TidemillError, TrainingError

BYSTANDER = re.compile(
    r"gloo|nccl|Connection (closed|reset) by peer|DistBackendError|DistNetworkError|"
    r"Timed out (waiting|after)|SynchronizationActor|broken rendezvous",
    re.IGNORECASE,
)
COLLECTIVE = re.compile(r"rank \d+ failed: (RuntimeError|Dist\w+Error):")
SNIPPET = re.compile(r"^\[Rank ([\d,]+) Error Snippet\]:\n", re.MULTILINE)


def explain_failure(error: BaseException) -> TidemillError:
    """Turn what `fit` raised into an error that names rank and cause.

    Returns:
        The worker's own error if it is one of Tidemill's, else a `TrainingError`.

    Raises:
        BaseException: `error` itself, if it is neither Ray's nor Tidemill's: a bug in the driver.
    """
    match error:
        case WorkerGroupError(worker_failures=failures) if failures:
            rank, cause = _culprit(failures)
            if isinstance(cause, TidemillError):
                return cause
            summary = f"rank {rank} failed: {one_line(cause)}"
            return TrainingError(summary, _details(error, rank), rank)
        case ControllerError(controller_failure=cause):
            return TrainingError(f"Ray could not run the workers: {one_line(cause)}", str(cause))
        case TrainingFailedError() | RayError():
            return TrainingError(f"Ray gave up: {one_line(error)}", str(error))
        case TidemillError():
            return error
        case _:
            raise error


def _culprit(failures: dict[int, Exception]) -> tuple[int, BaseException]:
    """The first rank that failed for a reason of its own, or else simply the first."""
    ranked = [(rank, _cause(error)) for rank, error in sorted(failures.items())]
    own = [item for item in ranked if not _is_bystander(item[1])]
    return (own or ranked)[0]


def _cause(error: BaseException) -> BaseException:
    """What Ray could not reach a worker for, where that is all the failure says."""
    return getattr(error, "health_check_failure", None) or error


def _is_bystander(error: BaseException) -> bool:
    """Whether a collective broke; torch raises runtime errors then, and Ray its own."""
    of_a_collective = (
        isinstance(error, RuntimeError)
        or type(error).__module__.startswith("ray.")
        or (isinstance(error, TrainingError) and COLLECTIVE.match(str(error)) is not None)
    )
    return of_a_collective and BYSTANDER.search(one_line(error)) is not None


def _details(error: WorkerGroupError, rank: int) -> str:
    """The rank's traceback. Exceptions travel without theirs, but Ray quotes it in its message."""
    _, *quoted = SNIPPET.split(str(error))
    told = zip(quoted[::2], quoted[1::2], strict=True)
    return next((text for ranks, text in told if str(rank) in ranks.split(",")), str(error))


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
