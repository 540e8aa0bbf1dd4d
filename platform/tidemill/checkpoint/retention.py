"""Which checkpoints stay: a pure function of what is known of each, so that it can be told before.

Rules add up: a checkpoint stays if any of them wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What to keep.

    Attributes:
        last: Newest checkpoints kept, at least 1.
        best: Kept for the lowest loss, see `explain_kept`.
        every_steps: Those whose step is a multiple of this are kept; 0 keeps none for that.
    """

    last: int = 1
    best: int = 0
    every_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A committed checkpoint.

    Attributes:
        name: Name of its directory; names sort by step, then attempt.
        step: Steps it has taken.
        loss: Training loss of its last step, nats per target; None if unknown or not finite.
        val_loss: Held-out loss at that step; None if it was not measured there.
    """

    name: str
    step: int
    loss: float | None = None
    val_loss: float | None = None


def choose_kept(candidates: Sequence[Candidate], keep: Keep) -> set[str]:
    """Names of the checkpoints that stay, see `explain_kept`."""
    return set(explain_kept(candidates, keep))


def explain_kept(candidates: Sequence[Candidate], keep: Keep) -> dict[str, list[str]]:
    """Which checkpoints stay, and for the sake of which rules.

    The best are those with the lowest held-out loss among the checkpoints that have one, and of the
    lowest training loss where none has one; the newer of two equals.

    Returns:
        Rules, in words, by name of the checkpoint; the newest first.
    """
    newest_first = sorted(candidates, key=lambda held: held.name, reverse=True)
    rules: dict[str, list[str]] = {held.name: [] for held in newest_first}
    last = max(keep.last, 1)
    for held in newest_first[:last]:
        rules[held.name].append("newest" if held is newest_first[0] else f"newest {last}")
    measured = [(held.val_loss, held.name) for held in newest_first if held.val_loss is not None]
    losses = measured or [(held.loss, held.name) for held in newest_first if held.loss is not None]
    which = "held-out loss" if measured else "loss"
    # A stable sort leaves the newer of two equals first.
    for place, (_, name) in enumerate(sorted(losses, key=lambda item: item[0])[: keep.best]):
        rules[name].append(f"best {which}" if place == 0 else f"best {keep.best} by {which}")
    for held in newest_first:
        if keep.every_steps and held.step % keep.every_steps == 0:
            rules[held.name].append(f"multiple of {keep.every_steps:,}")
    return {name: why for name, why in rules.items() if why}
