"""When state is saved: every so many steps, every so many seconds, on demand, and at the end.

Ranks never decide alone: what only one of them knows (its clock, a request, a copy still on its
way) goes into the sum that all of them take at the beginning of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tidemill.spec.progress import Cursor, State
from tidemill.spec.run import RunSpec


class CheckpointStore(Protocol):
    """Saves state behind training's back."""

    @property
    def busy(self) -> bool:
        """Whether this rank still works on an earlier save."""
        ...

    def save(
        self, state: State, cursor: Cursor, metrics: Mapping[str, float], *, commit: bool = True
    ) -> None:
        """Begin to save `state` as of `cursor`; every rank calls it in the same step."""
        ...

    def settle(self) -> None:
        """Wait until the state last given to `save` may change."""
        ...

    def finish(self) -> Any:
        """Wait until what was begun is committed; raises if it cannot be."""
        ...


class Cadence:
    """Saves the state of one attempt when it is due.

    Args:
        spec: When that is, and which step is the last.
        store: Where it goes.
        look: Gives this rank's state.
        requested: Whether somebody asked this rank for a checkpoint since the last call.
    """

    def __init__(
        self,
        spec: RunSpec,
        store: CheckpointStore,
        look: Callable[[], State],
        requested: Callable[[], bool],
    ) -> None:
        self._spec = spec.checkpoint
        self._last = spec.steps
        self._store = store
        self._look = look
        self._requested = requested
        self._step = -1  # where an attempt begins may be in the memory of nodes alone
        self._saved_s = time.monotonic()

    def asks(self) -> bool:
        """Whether this rank wants a checkpoint after the step that begins now."""
        overdue = 0 < self._spec.every_s <= time.monotonic() - self._saved_s
        return self._requested() or overdue

    def saves(self) -> bool:
        """Whether this rank still works on an earlier save."""
        return self._store.busy

    def after(
        self, cursor: Cursor, metrics: Mapping[str, float], *, asked: bool, busy: bool
    ) -> None:
        """Save after a step if that is due.

        Args:
            cursor: Where the run is.
            metrics: Figures for people.
            asked: Whether any rank asked for it.
            busy: Whether any rank still works on an earlier save; a snapshot for near memory alone
                does not wait for that.
        """
        if asked or _due(cursor.step, self._spec.every_steps):
            self._save(cursor, metrics)
        elif (
            not busy and cursor.step < self._last and _due(cursor.step, self._spec.near_every_steps)
        ):
            self._store.save(self._look(), cursor, metrics, commit=False)

    def finish(self, cursor: Cursor, metrics: Mapping[str, float]) -> None:
        """Save what is not saved yet, and wait until all of it is committed.

        Raises:
            CheckpointError: It cannot be.
        """
        if self._step != cursor.step:
            self._save(cursor, metrics)
        self._store.finish()

    def _save(self, cursor: Cursor, metrics: Mapping[str, float]) -> None:
        self._store.save(self._look(), cursor, metrics)
        self._step, self._saved_s = cursor.step, time.monotonic()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
