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
            own = _unwrapped(cause)
            if isinstance(own, TidemillError):
                return own
            return TrainingError(f"rank {rank} failed: {_one_line(own)}", _traceback(cause))
        case ControllerError(controller_failure=cause):
            return TrainingError(f"Ray could not run the workers: {_one_line(cause)}", str(cause))
        case TrainingFailedError() | RayError():
            return TrainingError(f"Ray gave up: {_one_line(error)}", str(error))
        case TidemillError():
            return error
        case _:
            raise error


def _culprit(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """The first rank that failed for a reason of its own, or else simply the first."""
    ranked = sorted(failures.items())
    own = [item for item in ranked if not BYSTANDER.search(_one_line(_unwrapped(item[1])))]
    return (own or ranked)[0]


def _unwrapped(error: Exception) -> BaseException:
    return getattr(error, "_base_exc", None) or error


def _traceback(error: Exception) -> str:
    return getattr(error, "_traceback_str", None) or str(error)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
