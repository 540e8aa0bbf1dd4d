"""Fewer checkpoints, at a person's wish: what may go is decided first, and told before it goes.

Three things never go: the newest checkpoint that is whole, what storage does not show, and what a
run may be writing. The last is judged by signs that anyone can see: a directory without a manifest
is left over if its attempt has said its last word or a later one has begun, or if neither the run
nor the directory has changed for a day. Attempts never overlap, and a save gives up long before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill import storage
from tidemill.checkpoint.inspect import Condition, Held
from tidemill.checkpoint.manifest import MANIFEST
from tidemill.checkpoint.retention import Candidate, Keep, explain_kept

QUIET_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What is known of a run's life.

    Attributes:
        attempt: The newest attempt that is known to have begun; 0 if none is.
        over: Attempts that have said their last word, with everything saved.
        last_s: Time of the newest event, seconds since the epoch; 0 if there is none.
        now_s: The time now.
    """

    attempt: int
    over: frozenset[int]
    last_s: float
    now_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of one directory.

    Attributes:
        held: The directory.
        stays: Whether it stays.
        why: In words.
    """

    held: Held
    stays: bool
    why: str


def judge(found: Sequence[Held], keep: Keep, signs: Signs) -> list[Verdict]:
    """Decide what stays.

    Args:
        found: All directories of a run, newest first; the newest whole one has been proven.
        keep: What to keep of the whole ones.
        signs: Of the run's life.
    """
    whole = [_candidate(held) for held in found if held.is_whole]
    rules = explain_kept(whole, keep)
    newest = next((held for held in found if held.is_whole), None)

    def decide(held: Held) -> Verdict:
        match held.condition:
            case Condition.whole:
                why = rules.get(held.place.name)
                return Verdict(held, why is not None, ", ".join(why or ["no rule keeps it"]))
            case Condition.torn:
                why = why_left_over(held, signs)
                return Verdict(held, not why, why or "a run may be writing it")
            case Condition.corrupt if newest is not None and _age(held) < _age(newest):
                return Verdict(held, stays=False, why="corrupt, and a newer one is whole")
            case Condition.corrupt:
                return Verdict(held, stays=True, why="corrupt, but no newer one is whole")
            case Condition.unreadable:
                return Verdict(held, stays=True, why="unreadable, so nobody can tell")

    return [decide(held) for held in found]


def why_left_over(held: Held, signs: Signs) -> str:
    """Why nobody can be writing a directory without a manifest; empty if somebody may be."""
    if held.attempt < signs.attempt:
        return f"left over: attempt {signs.attempt} has begun since"
    if held.attempt in signs.over:
        return f"left over: attempt {held.attempt} has ended"
    if signs.now_s - max(signs.last_s, held.changed_s) > QUIET_S and held.changed_s:
        return "left over: nothing has changed for a day"
    return ""


def carry_out(verdict: Verdict) -> bool:
    """Remove a directory that is not to stay, its manifest first.

    Returns:
        Whether it was removed; not if what was left over has become a checkpoint since.

    Raises:
        StorageError: It cannot be removed.
    """
    place = verdict.held.place
    if verdict.held.condition is Condition.torn and storage.exists(place / MANIFEST):
        return False
    storage.remove(place / MANIFEST)
    storage.remove(place)
    return True


def _candidate(held: Held) -> Candidate:
    metrics = held.manifest.metrics if held.manifest is not None else {}
    return Candidate(
        name=held.place.name,
        step=held.step,
        loss=metrics.get("loss"),
        val_loss=metrics.get("val_loss"),
    )


def _age(held: Held) -> tuple[int, int]:
    return held.step, held.attempt
