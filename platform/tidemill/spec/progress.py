"""The nouns that training passes around: world, cursor, state, event.

`Fragment` is the seam between strategies and checkpoints: whatever a strategy does, what a rank
owns of a logical tensor is a set of contiguous row-major ranges. Tensors are named here only for
type checkers, so this module needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One attempt's place of one rank.

    Attributes:
        rank: This process, 0 to size - 1.
        size: Number of ranks.
        local_rank: Index of this process on its node.
        device: Torch device string, `cpu` or `cuda:N`.
        attempt: 1 for the first start of the run, one more for every later start.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """All that a run must remember besides tensors.

    Attributes:
        step: Optimizer steps taken or skipped so far; the next step has this number.
        samples: Samples of the run used so far; the next step starts with this sample.
    """

    step: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A contiguous row-major range of a logical tensor.

    Attributes:
        start: First element, counted in the flattened logical tensor.
        data: One-dimensional contiguous view of the live memory that holds the range.
    """

    start: int
    data: torch.Tensor


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one rank holds of one logical tensor.

    Attributes:
        shape: Shape of the whole tensor.
        dtype: Name of its element type, e.g. `float32`.
        pieces: Disjoint ranges, ascending; empty if this rank holds nothing of it.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole logical tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class State:
    """A run's state as one rank sees it.

    Attributes:
        tensors: Fragments by logical name: `param.NAME`, `exp_avg.NAME`, `buffer.NAME`, ...
        scalars: JSON values that are the same on every rank: loss scale, optimizer step, ...
    """

    tensors: dict[str, Fragment]
    scalars: dict[str, Any] = field(default_factory=dict[str, Any])


class EventKind(StrEnum):
    """What can happen to a run. The fields of each kind are listed in `docs/events.md`."""

    attempt_started = "attempt_started"
    restored = "restored"
    step = "step"
    used = "used"
    evaluated = "evaluated"
    checkpoint_saved = "checkpoint_saved"
    checkpoint_failed = "checkpoint_failed"
    near_kept = "near_kept"
    near_refused = "near_refused"
    checkpoint_refused = "checkpoint_refused"
    notice = "notice"
    resizing = "resizing"
    rejoined = "rejoined"
    straggler = "straggler"
    hung = "hung"
    stop_requested = "stop_requested"
    stopped = "stopped"
    finished = "finished"
    failed = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What happened.
        at_s: Seconds since the epoch.
        attempt: The attempt it happened in.
        fields: JSON values; which ones depends on `kind`.
    """

    kind: EventKind
    at_s: float
    attempt: int
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


class Recorder(Protocol):
    """Takes events; must not block training."""

    def record(self, kind: EventKind, **fields: Any) -> None:
        """Note that `kind` happened now."""
        ...

    def flush(self) -> None:
        """Wait until what was recorded so far is in storage, or until that failed."""
        ...
