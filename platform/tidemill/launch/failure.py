"""Which of several failed ranks is to blame, why it failed, and what to tell about it.

When one rank dies the others fail too, in the collective they were in. A rank that failed for a
reason of its own is told first; its traceback is told once, without Ray's frames around it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from tidemill.errors import HopelessError, TidemillError, TrainingError
from tidemill.launch.judge import Fault

BYSTANDER = re.compile(
    r"gloo|nccl|Connection (closed|reset) by peer|DistBackendError|DistNetworkError|"
    r"Timed out (waiting|after)|SynchronizationActor|broken rendezvous",
    re.IGNORECASE,
)
COLLECTIVE = re.compile(r"rank \d+ failed: (RuntimeError|Dist\w+Error):")
EXHAUSTED = re.compile(
    r"rank \d+ failed: (OutOfMemoryError|MemoryError|"
    r"(RuntimeError|AcceleratorError): .*(out of memory|ALLOC_FAILED|can't allocate memory))"
)
SNIPPET = re.compile(r"^\[Rank ([\d,]+) Error Snippet\]:\n", re.MULTILINE)
NODE = re.compile(r"(?:Node Id: |\(IP: [^)]*\bID: )([0-9a-f]{16,})")
NODE_DIED = "its node has died"
SPECULATION = re.compile(r"\. (?:Some common causes|The task may)")
STARTUP = frozenset({"WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError"})
SHOWN = 12
"""Digits of a node's id that people are shown."""


class CondemnedError(Exception):
    """A rank was taken for dead, although it is not known to be.

    Args:
        reason: One line that says why.
        fault: `hang` or `kill`.
    """

    def __init__(self, reason: str, fault: Fault) -> None:
        super().__init__(reason)
        self.fault = fault

    def __reduce__(self) -> tuple[type[CondemnedError], tuple[str, Fault]]:
        """Survive the way from the controller to the driver."""
        return type(self), (str(self), self.fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure, explained.

    Attributes:
        error: What to tell.
        fault: Why it happened.
        rank: The rank to blame; None if no single one is.
        node: Ray's id of its node; empty if that is not known.
        judged: Whether the controller has seen it; else the controller itself is what was lost.
    """

    error: TidemillError
    fault: Fault
    rank: int | None = None
    node: str = ""
    judged: bool = True


def diagnose(
    error: BaseException, nodes: Mapping[int, str] | None = None, leaving: Collection[str] = ()
) -> Failure:
    """Find out who failed and why.

    Args:
        error: What Ray Train raised, or is about to raise.
        nodes: Ray's id of each rank's node, as far as it is known.
        leaving: Nodes whose departure was announced.

    Raises:
        BaseException: `error` itself, if it is neither Ray's nor Tidemill's: a bug in the driver.
    """
    match error:
        case WorkerGroupError(worker_failures=failures) if failures:
            rank, reason = _culprit(failures)
            known = nodes or {}
            node = known.get(rank) or _node_in(reason)
            told, fault = _explained(rank, reason, node, _details(error, rank))
            # Whoever lost a rank that was not heard of lost the one that was to go.
            gone = set(known.values()) if _is_bystander(reason) else {node}
            if fault is Fault.kill and not gone.isdisjoint(leaving):
                fault = Fault.preempted
            return Failure(error=told, fault=fault, rank=rank, node=node)
        case ControllerError(controller_failure=TidemillError() as own):
            return Failure(error=own, fault=_fault_of(own))
        case ControllerError(controller_failure=reason):
            told = TrainingError(f"Ray could not run the workers: {one_line(reason)}", str(reason))
            lost = isinstance(reason, RayActorError) or type(reason).__name__ in STARTUP
            return Failure(error=told, fault=Fault.kill if lost else Fault.error)
        case RayActorError():
            told = TrainingError(f"the controller of the run was lost: {_death(error)}", str(error))
            return Failure(error=told, fault=Fault.kill, judged=False)
        case TrainingFailedError() | RayError():
            told = TrainingError(f"Ray gave up: {one_line(error)}", str(error))
            return Failure(error=told, fault=Fault.error, judged=False)
        case TidemillError():
            return Failure(error=error, fault=_fault_of(error))
        case _:
            raise error


def _explained(
    rank: int, error: BaseException, node: str, details: str
) -> tuple[TidemillError, Fault]:
    """What to tell of a rank's failure, and why it failed."""
    place = f"node {node[:SHOWN]}" if node else "its node"
    match error:
        case TidemillError():
            return error, _fault_of(error)
        case CondemnedError(fault=fault):
            told = str(error)
        case OutOfMemoryError():
            told, fault = f"rank {rank} was lost: {place} ran out of memory", Fault.oom
        case RayActorError(preempted=True):
            told, fault = f"rank {rank} was lost: {place} was preempted", Fault.preempted
        case RayActorError() if NODE_DIED in str(error):
            told, fault = f"rank {rank} was lost: {place} died", Fault.kill
        case RayActorError():
            where = f" on {place}" if node else ""
            told, fault = f"rank {rank} was lost{where}: {_death(error)}", Fault.kill
        case _:
            told = f"rank {rank} failed: {one_line(error)}"
            of_ray = type(error).__module__.startswith("ray.")
            fault = Fault.kill if of_ray or _is_bystander(error) else _fault_of_text(told)
    return TrainingError(told, details, rank), fault


def _fault_of(error: TidemillError) -> Fault:
    if not isinstance(error, TrainingError) or isinstance(error, HopelessError):
        return Fault.refusal
    return Fault.kill if _is_bystander(error) else _fault_of_text(str(error))


def _fault_of_text(told: str) -> Fault:
    return Fault.oom if EXHAUSTED.match(told) else Fault.error


def _death(error: RayActorError) -> str:
    """What Ray knows of it, in one line: the last that is not indented."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    return SPECULATION.split(lines[-1])[0] if lines else one_line(error)


def _node_in(error: BaseException) -> str:
    found = NODE.search(str(error))
    return found[1] if found else ""


def _culprit(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """The first rank that failed for a reason of its own, or else simply the first."""
    ranked = [(rank, _reason(error)) for rank, error in sorted(failures.items())]
    own = [item for item in ranked if not _is_bystander(item[1])]
    return (own or ranked)[0]


def _reason(error: BaseException) -> BaseException:
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
