"""What the door `jobs/checkpoints.py` does: look at a run's checkpoints, and tell what was found.

The room of checkpoints knows them, the room of reports shows them; here they meet. No Ray, no model
and no corpus: what is told stands in storage, whatever trained it.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tidemill.checkpoint.inspect import Condition, Held, survey
from tidemill.checkpoint.manifest import CHECKPOINTS
from tidemill.checkpoint.pruning import Signs, carry_out, judge, why_left_over
from tidemill.checkpoint.retention import Keep
from tidemill.errors import CheckpointError, StorageError
from tidemill.launch.listing import tell_anatomy, tell_differences, tell_inventory, tell_row
from tidemill.report.desk import Desk
from tidemill.report.events import read_events
from tidemill.report.inventory import (
    Anatomy,
    Differences,
    Fate,
    Inventory,
    Proof,
    Pruning,
    Verification,
)
from tidemill.spec.doors import Action, CheckpointsSpec
from tidemill.spec.progress import EventKind
from tidemill.storage import Location, children, exists, locate

SPEC = "spec.json"
LAST_WORDS = {EventKind.finished, EventKind.stopped}
"""Said when everything is saved; a run that fails says so while other ranks may still write."""


def act(asked: CheckpointsSpec, desk: Desk) -> int:
    """Do what is asked, and answer at the desk.

    Returns:
        The exit code: 1 if something is not whole, or two checkpoints are not bit-equal.

    Raises:
        CheckpointError: There is no such run or step, or none of its checkpoints is whole.
        StorageError: It cannot be read, or what is to go cannot be removed.
    """
    run = find_run(asked.run, asked.storage)
    match asked.action:
        case Action.list:
            desk.answer(list_all(run))
        case Action.show:
            desk.answer(show(run, asked.step))
        case Action.verify:
            found = verify(run, asked.step, desk)
            desk.answer(found)
            return 1 if found.failed else 0
        case Action.prune:
            keep = Keep(
                last=asked.keep_last, best=asked.keep_best, every_steps=asked.keep_every_steps
            )
            desk.answer(prune(run, keep, desk, apply=asked.apply))
        case Action.diff:
            other = find_run(asked.with_run, asked.storage, "with_run") if asked.with_run else run
            sides = (find(run, asked.step, "step"), find(other, asked.with_step, "with_step"))
            found = diff(*sides, desk, asked.top)
            desk.answer(found)
            return 0 if found.bit_equal else 1
    return 0


def find_run(name: str, storage: str, key: str = "run") -> Location:
    """The directory of a run.

    Raises:
        CheckpointError: There is none; names those that there are.
        StorageError: The storage cannot be read.
    """
    try:
        place = locate(storage)
        run = place / name
        if _is_run(run):
            return run
        entries = [entry.location for entry in children(place) if entry.is_directory]
        there = [entry.name for entry in entries if _is_run(entry)]
    except StorageError as error:
        raise StorageError(f"storage: {error}") from error
    guess = difflib.get_close_matches(name, there, n=1)
    remedy = f"did you mean {guess[0]}? " if guess else ""
    runs = f"runs there: {', '.join(there)}" if there else "check storage=, which holds no run"
    raise CheckpointError(f"{key}: {run} is no run; {remedy}{runs}")


def find(run: Location, step: int, key: str = "step") -> Held:
    """The checkpoint of a step, the latest attempt's if there are several; 0 is the newest whole.

    Raises:
        CheckpointError: There is none, or it has no manifest that can be read.
    """
    found = _all_of(run)
    if step:
        held = _of_step(run, found, step, key)[0]
    else:
        held = next((held for held in found if held.is_whole), None)
        if held is None:
            raise CheckpointError(
                f"run: no checkpoint of {run} is whole ({found[0].problem}); restore one"
            )
    if held.manifest is None:
        raise CheckpointError(
            f"{key}: {held.place.name} is {held.condition} ({held.problem}); name another step"
        )
    return held


def list_all(run: Location) -> Inventory:
    """All checkpoints of a run."""
    return tell_inventory(run, survey(run))


def show(run: Location, step: int) -> Anatomy:
    """All that the manifest of a checkpoint says."""
    return tell_anatomy(run, find(run, step))


def verify(run: Location, step: int, desk: Desk) -> Verification:
    """Read every byte of all checkpoints, or of those of one step.

    What has no manifest counts as damage only if it is left over: a run may be writing it.
    """
    found = _all_of(run)
    if step:
        found = _of_step(run, found, step, "step")
    signs = _signs(run, found)
    proofs: list[Proof] = []
    prove = _prover()
    with desk.reading("reading", sum(held.size for held in found if held.is_whole)) as advance:
        for held in found:
            began_s = time.monotonic()
            proven = prove(held, advance)
            counts = held.condition is not Condition.torn or bool(why_left_over(held, signs))
            seconds = time.monotonic() - began_s
            proofs.append(Proof(checkpoint=tell_row(proven), seconds=seconds, counts=counts))
            desk.say(proofs[-1])
    return Verification(place=str(run), proofs=tuple(proofs))


def prune(run: Location, keep: Keep, desk: Desk, *, apply: bool) -> Pruning:
    """Decide which checkpoints go; the newest one that is to stay is read whole first.

    Raises:
        CheckpointError: No checkpoint is whole, so none can be spared.
    """
    found = _all_of(run)
    prove = _prover()
    for index, held in enumerate(found):
        if held.is_whole:
            with desk.reading("proving the newest", held.size) as advance:
                found[index] = prove(held, advance)
            if found[index].is_whole:
                break
    else:
        raise CheckpointError(
            f"run: no checkpoint of {run} is whole ({found[0].problem}); nothing is removed"
        )
    verdicts = judge(found, keep, _signs(run, found))
    if apply:
        verdicts = [
            replace(verdict, stays=True, why="it has been committed since")
            if not verdict.stays and not carry_out(verdict)
            else verdict
            for verdict in verdicts
        ]
    return Pruning(
        place=str(run),
        applied=apply,
        fates=tuple(
            Fate(checkpoint=tell_row(verdict.held), stays=verdict.stays, why=verdict.why)
            for verdict in verdicts
        ),
    )


def diff(left: Held, right: Held, desk: Desk, top: int) -> Differences:
    """Compare two checkpoints, tensor by tensor.

    Raises:
        CheckpointError: One of them is not whole.
    """
    from tidemill.checkpoint.compare import compare, compared_bytes

    with desk.reading("comparing", compared_bytes(left, right)) as advance:
        found = compare(left, right, advance)
    return tell_differences(left, right, found, top)


def _is_run(place: Location) -> bool:
    return exists(place / SPEC) or exists(place / CHECKPOINTS)


def _all_of(run: Location) -> list[Held]:
    found = survey(run)
    if not found:
        raise CheckpointError(f"run: {run} has no checkpoint yet; train it further")
    return found


def _of_step(run: Location, found: Sequence[Held], step: int, key: str) -> list[Held]:
    """Those of one step, the latest attempt's first."""
    asked = [held for held in found if held.step == step]
    if not asked:
        there = ", ".join(str(held) for held in sorted({held.step for held in found}))
        raise CheckpointError(f"{key}: {run} has no checkpoint of step {step}; there are {there}")
    return asked


def _prover() -> Callable[[Held, Callable[[int], None]], Held]:
    """A function that adds what reading every byte shows; it takes torch, which takes a while."""
    from tidemill.checkpoint.damage import find_damage

    def prove(held: Held, advance: Callable[[int], None]) -> Held:
        try:
            flaws = find_damage(held, advance) if held.is_whole else []
        except StorageError as error:
            return replace(held, condition=Condition.unreadable, problem=str(error))
        if flaws:
            return replace(held, condition=Condition.corrupt, problem="; ".join(flaws))
        return held

    return prove


def _signs(run: Location, found: Sequence[Held]) -> Signs:
    """What events and checkpoints tell of a run's life; only what is torn makes it worth a look."""
    events = read_events(run) if any(held.condition is Condition.torn for held in found) else []
    newest = max((event.attempt for event in events), default=0)
    return Signs(
        attempt=max(newest, *(held.attempt for held in found)),
        over=frozenset(event.attempt for event in events if event.kind in LAST_WORDS),
        last_s=max((event.at_s for event in events), default=0.0),
        now_s=time.time(),
    )
