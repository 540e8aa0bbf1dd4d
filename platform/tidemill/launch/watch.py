"""Watch: how far a group is, and which of its ranks are not well any more."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tidemill.launch.failure import CondemnedError
from tidemill.launch.health import Health, Hung, Silent, Vitals
from tidemill.launch.judge import Fault
from tidemill.launch.pool import Process
from tidemill.launch.stragglers import Straggler
from tidemill.spec.progress import EventKind
from tidemill.spec.scale import ScaleSpec

Finding = tuple[EventKind, dict[str, Any]]


class Watch:
    """Follows one run from group to group.

    Args:
        scale: When a rank has been still for too long.

    Attributes:
        step: The step that the group is in, as far as is known; None before the first ever.
        attempt: Number of the newest group that was heard of; 0 before the first.
        trained: Whether this group has begun a step.
        ended_s: Seconds since the first rank of this group ended its part, as of when that was
            heard; 0 if none has.
        condemned: Ranks that are to be taken for failed, with what they failed of.
        doomed: Those of them whose process is to be ended, because it will not end by itself.
    """

    def __init__(self, scale: ScaleSpec) -> None:
        self.step: int | None = None
        self.attempt = 0
        self.trained = False
        self.ended_s = 0.0
        self.condemned: dict[int, CondemnedError] = {}
        self.doomed: set[int] = set()
        self._health = Health(scale.hang_s, scale.collective_timeout_s)

    @property
    def step_s(self) -> float:
        """Seconds that a step of this group takes; 0 if not known."""
        return self._health.step_s

    def begin(self) -> None:
        """Another group begins."""
        self.trained = False
        self.ended_s = 0.0
        self.condemned.clear()
        self.doomed.clear()
        self._health.begin(time.monotonic())

    def follow(self, vitals: Mapping[int, Vitals | None]) -> None:
        """Remember how far the group is; also from the poll that tells of its failure."""
        heard = [told for told in vitals.values() if told is not None and told.attempt]
        steps = [told.step for told in heard if told.step >= 0]
        self.attempt = max((told.attempt for told in heard), default=self.attempt)
        self.step = min(steps, default=self.step)
        self.trained |= bool(steps)
        self.ended_s = max((told.ended_s for told in heard), default=0.0)

    def feed(
        self,
        vitals: Mapping[int, Vitals | None],
        group: Sequence[Process],
        answering: Collection[str],
    ) -> Iterator[Finding]:
        """Take in what the ranks told; condemn those that hold up the others.

        Args:
            vitals: What each rank told, None for one that did not answer.
            group: Processes by rank.
            answering: Nodes that answer.

        Yields:
            Events to record.
        """
        lost = [rank for rank, process in enumerate(group) if process.node not in answering]
        for finding in self._health.feed(vitals, time.monotonic(), lost):
            match finding:
                case Straggler():
                    yield (
                        EventKind.straggler,
                        {
                            "rank": finding.rank,
                            "node": group[finding.rank].node,
                            "slowdown": finding.slowdown,
                            "what": finding.what.value,
                        },
                    )
                case Silent():
                    self.condemned[finding.rank] = CondemnedError(str(finding), Fault.kill)
                    self.doomed.add(finding.rank)
                case Hung():
                    reason = CondemnedError(str(finding), Fault.hang)
                    self.condemned |= dict.fromkeys(finding.ranks, reason)
                    if len(finding.ranks) < len(group):  # else nothing tells who is to blame
                        self.doomed |= set(finding.ranks)
                    yield (
                        EventKind.hung,
                        {
                            "rank": finding.ranks[0],
                            "node": group[finding.ranks[0]].node,
                            "phase": finding.phase.value,
                            "after_s": finding.after_s,
                        },
                    )
