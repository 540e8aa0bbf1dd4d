"""The judge: whether a failed run is worth another try, or would only spend more on the same end.

What happens again at the same step is no accident. How often it must happen depends on what it is:
an exception repeats itself exactly, a machine may be lost twice by chance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from tidemill.errors import HopelessError, TidemillError


class Fault(StrEnum):
    """Why a group failed.

    `kill` is the loss of a process or a machine, `preempted` one that was announced, `oom` a lack
    of memory, `hang` a rank that stood still, `error` an exception, and `refusal` something that
    Tidemill itself found wrong.
    """

    kill = "kill"
    preempted = "preempted"
    oom = "oom"
    hang = "hang"
    error = "error"
    refusal = "refusal"


TIMES = {Fault.error: 2, Fault.oom: 2, Fault.kill: 3, Fault.hang: 3, Fault.preempted: 3}
"""Failures in the same way at the same step that are no accident any more."""
WITHOUT_A_STEP = 2
"""Failures, in whatever way, of a run that has never finished a step."""
ON_GPU = re.compile(r"CUDA|CUBLAS|Accelerator", re.IGNORECASE)

_RANK = re.compile(r"^rank \d+ ")
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{12,}\b|\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do after a failure.

    Attributes:
        error: What to end the run with; None to go on.
        failures: Failures in a row, this one included, without a step of progress in between.
    """

    error: TidemillError | None
    failures: int

    @property
    def go_on(self) -> bool:
        """Whether to try again."""
        return self.error is None


class Judge:
    """Judges the failures of one launch, one after the other.

    Args:
        max_failures: Failures in a row that are borne; -1 bears any number.
    """

    def __init__(self, max_failures: int) -> None:
        self._allowed = max_failures
        self._furthest = 0
        self._row = 0
        self._seen: list[tuple[str, int]] = []

    def judge(
        self, error: TidemillError, step: int | None, fault: Fault, *, trained: bool = True
    ) -> Verdict:
        """Judge a failure.

        Args:
            error: It, as explained by `failure.diagnose`.
            step: The step it happened in, or the last that was recorded, but always the same of
                the two; 0 or None if the run has never finished one.
            fault: Why it happened.
            trained: Whether the group that failed had begun a step at all. One that is lost on its
                way there says nothing about the step.
        """
        reached = step or 0
        if reached > self._furthest:
            self._furthest, self._row = reached, 0
            self._seen.clear()
        self._row += fault is not Fault.preempted
        if fault is Fault.refusal:
            return Verdict(error, self._row)
        details, rank = getattr(error, "details", ""), getattr(error, "rank", None)
        if fault is Fault.error and not self._furthest and rank is not None:
            # A mistake in a model or a path, and no machine's: told as it is.
            return Verdict(HopelessError(str(error), details, rank), self._row)
        way = _way(error, fault)
        if trained or fault in {Fault.error, Fault.oom}:
            self._seen.append((way, reached))
        # A lost machine is heard of in the step it was lost in, or in the next one.
        times = sum(way == seen and abs(reached - step) <= 1 for seen, step in self._seen)
        reason = self._reason(fault, times, reached)
        if reason is None:
            return Verdict(None, self._row)
        told = f"{reason}: {error}{_advice(error, fault)}"
        return Verdict(HopelessError(told, details, rank), self._row)

    def _reason(self, fault: Fault, times: int, step: int) -> str | None:
        """Why to stop; None to go on."""
        where = f"at step {step}" if step else "in or before its first step"
        if times >= TIMES[fault]:
            return f"failed {_often(times)} in the same way {where}"
        if not self._furthest and self._row >= WITHOUT_A_STEP:
            return f"failed {_often(self._row)} {where}"
        if 0 <= self._allowed < self._row:
            limit = f"scale.max_failures={self._allowed} bears no more"
            return f"failed {_often(self._row)} in a row without progress, {limit}"
        return None


def _often(times: int) -> str:
    return {1: "once", 2: "twice"}.get(times, f"{times} times")


def _way(error: TidemillError, fault: Fault) -> str:
    """What two failures have in common, whichever rank has them and whatever numbers they name."""
    if fault is not Fault.error:
        return fault.value
    return _VARYING.sub("#", _RANK.sub("", str(error)))


def _advice(error: TidemillError, fault: Fault) -> str:
    if fault is Fault.oom and ON_GPU.search(str(error)):
        return (
            "; lower batch.micro_size, or use memory.recompute=blocks, "
            "memory.offload=optimizer or all"
        )
    if fault is Fault.oom:
        return "; lower batch.micro_size, use memory.offload=none, or machines with more memory"
    if fault is Fault.kill:
        return (
            "; if the machine's memory ran out (see its kernel log), lower batch.micro_size or use "
            "memory.offload=none"
        )
    return ""
