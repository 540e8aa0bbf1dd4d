"""What the door `jobs/audit.py` does: prove from the logs which samples a run has used.

Nothing is asked but the logs, the seed and the order: the order says which samples a step must use,
the logs say, of every step and from all ranks, which it did use. No Ray, no model and no corpus.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise

from tidemill.data.corpus import Corpus, samples_per_epoch
from tidemill.data.proof import Order, find_doubts
from tidemill.errors import SpecError
from tidemill.launch.checkpoints import find_run
from tidemill.report.audit import Audit, EpochRow
from tidemill.report.desk import Desk
from tidemill.report.events import stream_events
from tidemill.report.history import Flaw, History, make_history
from tidemill.report.quantities import show_count
from tidemill.spec.base import from_plain
from tidemill.spec.doors import AuditSpec
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, exists, read_bytes

MOST_ROWS = 20


def act(asked: AuditSpec, desk: Desk) -> int:
    """Look at a run, and answer at the desk.

    Returns:
        The exit code: 1 if anything is not as it should be.

    Raises:
        CheckpointError: There is no such run.
        SpecError: The run is too old to have a ledger.
        StorageError: It cannot be read.
    """
    run = find_run(asked.run, asked.storage)
    history = make_history(stream_events(run))
    if history.steps and max(history.counts) < 0:
        raise SpecError(
            "run",
            f"no step of {run} tells which samples it used: an older version trained it",
            "nothing can be proven of it; what is trained from now on can be audited",
        )
    order = read_order(run)
    with desk.reading("proving", len(history.steps) * order.count, show_count) as advance:
        page = audit(str(run), history, order, advance)
    desk.answer(page)
    return 0 if page.clean else 1


def read_order(run: Location) -> Order:
    """The order that a run follows, from what its driver wrote beside the logs.

    Raises:
        SpecError: It is not there.
        StorageError: It cannot be read.
    """
    files = [run / "spec.json", run / "corpus.json"]
    for file in files:
        if not exists(file):
            raise SpecError("run", f"{file} is gone", "restore it: it has the seed and the sizes")
    spec = from_plain(RunSpec, json.loads(read_bytes(files[0])))
    corpus = Corpus(**json.loads(read_bytes(files[1])))
    return Order(
        seed=spec.seed,
        count=spec.batch.global_size,
        size=samples_per_epoch(corpus, spec.batch.sequence),
    )


def audit(
    place: str, history: History, order: Order, advance: Callable[[int], None] = lambda _: None
) -> Audit:
    """Hold a history against the order.

    Args:
        place: The run's directory.
        history: What the logs tell.
        order: What should have been.
        advance: Told how many samples have been held against it since the last call.
    """
    found = (
        _gaps(history),
        history.repeats,
        _misplaced(history, order),
        _doubts(history, order, advance),
    )
    flaws = sorted(chain(*found), key=lambda flaw: (flaw.first, flaw.last))
    base = history.base
    return Audit(
        place=place,
        clean=not flaws,
        steps=len(history.steps),
        first_step=base.step,
        origin=history.origin,
        samples=len(history.steps) * order.count,
        epoch_samples=order.size,
        attempts=history.newest,
        taken_back=history.taken_back,
        epochs=tuple(_epochs(history, order, flaws)),
        flaws=tuple(flaws),
    )


def _gaps(history: History) -> Iterator[Flaw]:
    """Steps that were taken, for later ones were, and that no log tells of."""
    told = [history.base.step - 1, *history.steps, history.reached]
    for before, after in pairwise(told):
        if after - before > 1:
            yield Flaw(first=before + 1, last=after - 1, attempt=0, problem="in no log")


def _misplaced(history: History, order: Order) -> Iterator[Flaw]:
    """States that were restored at another sample than their step is at."""
    for attempt, step, samples in history.restores:
        right = history.base.samples + (step - history.base.step) * order.count
        if samples != right:
            problem = f"restored at sample {samples:,} instead of {right:,}"
            yield Flaw(first=step, last=step, attempt=attempt, problem=problem)


def _doubts(history: History, order: Order, advance: Callable[[int], None]) -> Iterator[Flaw]:
    """What is wrong with the steps themselves; neighbours with the same flaw are told as one."""
    base = history.base
    doubts = find_doubts(
        array("q", [base.samples + (step - base.step) * order.count for step in history.steps]),
        history.samples,
        history.counts,
        history.digests,
        order=order,
        advance=advance,
    )
    first = 0
    for position, (at, doubt) in enumerate(doubts):
        step, attempt = history.steps[at], history.attempts[at]
        following = doubts[position + 1] if position + 1 < len(doubts) else None
        goes_on = (
            following == (at + 1, doubt)
            and history.steps[at + 1] == step + 1
            and history.attempts[at + 1] == attempt
        )
        if not goes_on:
            begin = history.steps[doubts[first][0]]
            yield Flaw(first=begin, last=step, attempt=attempt, problem=doubt.value)
            first = position + 1


def _epochs(history: History, order: Order, flaws: Iterable[Flaw]) -> Iterator[EpochRow]:
    """A row for each epoch, or, of many, for those in a row that are alike."""
    base, size = history.base, order.size

    def sample(step: int) -> int:
        return base.samples + (step - base.step) * order.count

    begin, end = sample(base.step), sample(max(history.reached, base.step))
    wrong = list(_merged((sample(flaw.first), min(sample(flaw.last + 1), end)) for flaw in flaws))
    if begin == end:
        return
    newest = (end - 1) // size
    # Where one row may end and another begin: both ends, and the epochs that something is wrong in.
    edges = {begin // size, begin // size + 1, newest, newest + 1}
    edges |= {edge for start, stop, _ in wrong for edge in (start // size, -(-stop // size))}
    if newest - begin // size < MOST_ROWS:
        edges |= set(range(begin // size, newest + 1))
    for first, after in pairwise(sorted(edge for edge in edges if edge <= newest + 1)):
        low, high = max(begin, first * size), min(end, after * size)
        spoilt = _below(high, wrong) - _below(low, wrong)
        yield EpochRow(
            first=first,
            last=after - 1,
            samples=high - low,
            proven=high - low - spoilt,
            whole=high - low == (after - first) * size,
            first_step=base.step + (low - base.samples) // order.count,
            last_step=base.step + (high - 1 - base.samples) // order.count,
        )


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Ranges without what several have in common, and the length of those before each.

    Args:
        ranges: (start, stop), ascending by their start.
    """
    reached = length = 0
    for start, stop in ranges:
        if stop > reached:
            yield max(start, reached), stop, length
            length += stop - max(start, reached)
            reached = stop


def _below(edge: int, merged: Sequence[tuple[int, int, int]]) -> int:
    """How much of the ranges lies below `edge`."""
    after = bisect_left(merged, edge, key=lambda held: held[0])
    if not after:
        return 0
    start, stop, length = merged[after - 1]
    return length + min(edge, stop) - start
