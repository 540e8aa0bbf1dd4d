"""Whatever a run went through, each sample is used as often as it should be, or the audit tells."""

from __future__ import annotations

import dataclasses
import io
import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.kit.training import tiny_run
from tests.launch.lives import TURNS, Life, Spoil, Taken, Turn
from tests.launch.runs import leave_run, refused, run_of, text_run
from tidemill.data.corpus import Corpus, open_stream, prepare_corpus
from tidemill.data.places import digest_steps
from tidemill.data.proof import Doubt, Order
from tidemill.errors import CheckpointError, SpecError
from tidemill.launch.audit import act, audit, read_order
from tidemill.report.audit import Audit
from tidemill.report.desk import Desk
from tidemill.report.events import EventLog
from tidemill.report.history import History
from tidemill.spec.doors import AuditSpec
from tidemill.spec.progress import EventKind
from tidemill.storage import locate

ORDERS = st.sampled_from(
    [
        Order(seed=seed, count=count, size=size)
        for seed, count, size in (
            (0, 1, 23),
            (1, 4, 50),
            (2, 6, 64),
            (3, 7, 101),
            (4, 9, 40),
            (5, 2, 1000),
        )
    ]
)
ORDER = Order(seed=1, count=4, size=50)


def proven(life: Life) -> Audit:
    return audit("run", life.history(), life.order)


# --- any life ----------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(turns=TURNS, order=ORDERS, every_steps=st.sampled_from([1, 4]))
def test_no_life_loses_or_repeats_a_sample(
    turns: list[Turn], order: Order, every_steps: int
) -> None:
    life = Life(order, every_steps=every_steps).live(turns)
    history = life.history()
    assert list(history.attempts) == life.lived
    page = audit("run", history, order)
    assert page.flaws == ()
    assert (page.clean, page.steps) == (True, len(life.lived))
    assert sum(row.proven for row in page.epochs) == len(life.lived) * order.count


@settings(max_examples=100, deadline=None)
@given(turns=TURNS, order=ORDERS)
def test_without_catching_up_what_is_lost_is_missed(turns: list[Turn], order: Order) -> None:
    life = Life(order, catches_up=False).live(turns)
    history = life.history()
    page = audit("run", history, order)
    assert page.clean == (list(history.steps) == [*range(len(life.lived))])


def test_a_first_rank_that_is_lost_with_its_lines_is_missed_unless_others_tell() -> None:
    turn = Turn(
        size=3, first=0, steps=5, save_after=2, torn=0, leaves=False, dies=1, unwritten=9, behind=0
    )
    assert proven(Life(ORDER).live([turn])).clean
    page = proven(Life(ORDER, catches_up=False).live([turn]))
    assert [(flaw.first, flaw.last, flaw.problem) for flaw in page.flaws] == [(2, 4, "in no log")]


# --- each fault --------------------------------------------------------------------------------


def drop(order: Order, at: int) -> Spoil:
    return lambda step, rank, taken: taken[1:] if (step, rank) == (at, 0) else taken


def double(order: Order, at: int) -> Spoil:
    return lambda step, rank, taken: [*taken, taken[0]] if (step, rank) == (at, 0) else taken


def exchange(order: Order, at: int) -> Spoil:
    def spoil(step: int, rank: int, taken: Taken) -> Taken:
        return [taken[0] + order.count, *taken[1:]] if (step, rank) == (at, 0) else taken

    return spoil


def swap(order: Order, at: int) -> Spoil:
    """Two steps take each other's samples."""
    moved = {at: order.count, at + 1: -order.count}
    return lambda step, _, taken: [key + moved.get(step, 0) for key in taken]


FAULTS: dict[str, tuple[Callable[[Order, int], Spoil], int, Doubt]] = {
    "dropped": (drop, 1, Doubt.miscounted),
    "doubled": (double, 1, Doubt.miscounted),
    "exchanged": (exchange, 1, Doubt.strange),
    "swapped": (swap, 2, Doubt.strange),
}


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=50, deadline=None)
@given(turns=TURNS, order=ORDERS, choice=st.integers(0))
def test_samples_that_were_not_as_they_should_are_found(
    fault: str, turns: list[Turn], order: Order, choice: int
) -> None:
    make, steps, doubt = FAULTS[fault]
    lived = Life(order).live(turns).lived
    assume(len(lived) >= steps)
    at = choice % (len(lived) - steps + 1)
    page = proven(Life(order, spoil=make(order, at)).live(turns))
    assert not page.clean
    assert {flaw.problem for flaw in page.flaws} == {doubt.value}
    named = [step for flaw in page.flaws for step in range(flaw.first, flaw.last + 1)]
    assert named == [*range(at, at + steps)]
    assert page.flaws[0].attempt == lived[at]
    spoilt = sum(row.samples - row.proven for row in page.epochs)
    assert spoilt == steps * order.count


@settings(max_examples=50, deadline=None)
@given(turns=TURNS, order=ORDERS, choice=st.integers(0), times=st.sampled_from([0, 2]))
def test_lines_that_are_lost_or_double_are_found(
    turns: list[Turn], order: Order, choice: int, times: int
) -> None:
    life = Life(order).live(turns)
    at = choice % len(life.lived)
    attempt = life.lived[at]
    assume(life.lived.count(attempt) > 1)  # an attempt of which nothing is told is none
    told = f'"kind":"step","at_s":0.0,"attempt":{attempt},"fields":{{"step":{at},'
    for number, lines in life.logs.items():
        copies = (
            times if number == attempt else times // 2
        )  # lines that are told late may be double
        lines[:] = [line for line in lines for _ in range(copies if told in line else 1)]
    late = not any(told in line for line in life.logs.get(attempt, ()))
    page = proven(life)
    if times and late:
        assert page.clean
    else:
        assert [(flaw.first, flaw.last) for flaw in page.flaws] == [(at, at)]


# --- what an audit tells -----------------------------------------------------------------------


def history_of(steps: Sequence[int], order: Order = ORDER, first: int = 0) -> History:
    """A history of one attempt that used what it should."""
    history = History()
    history.steps = array("q", steps)
    history.attempts = array("q", [1] * len(steps))
    firsts = [first + (step - steps[0]) * order.count for step in steps]
    history.samples = array("q", [sample + order.count for sample in firsts])
    history.counts = array("q", [order.count] * len(steps))
    history.digests = array("Q", digest_steps(firsts, order.count, order.size, order.seed).tolist())
    history.reached = steps[-1] + 1 if steps else 0
    history.newest = 1
    return history


def rows(page: Audit) -> list[tuple[int, ...]]:
    """Epochs, samples, those proven and steps of each row."""
    return [dataclasses.astuple(row) for row in page.epochs]


def test_epochs_are_told_one_by_one_and_the_current_one_as_far_as_it_is() -> None:
    page = audit("run", history_of(range(30)), ORDER)
    assert rows(page) == [
        (0, 0, 50, 50, True, 0, 12),
        (1, 1, 50, 50, True, 12, 24),
        (2, 2, 20, 20, False, 25, 29),
    ]
    assert (page.samples, page.epoch_samples, page.attempts) == (120, 50, 1)


def test_of_many_epochs_those_that_are_alike_are_told_together() -> None:
    history = history_of(range(1000))
    history.digests[500] += 1
    assert rows(audit("run", history, ORDER)) == [
        (0, 0, 50, 50, True, 0, 12),
        (1, 39, 1950, 1950, True, 12, 499),
        (40, 40, 50, 46, True, 500, 512),
        (41, 78, 1900, 1900, True, 512, 987),
        (79, 79, 50, 50, True, 987, 999),
    ]


def test_nothing_is_proven_of_nothing() -> None:
    page = audit("run", History(), ORDER)
    assert (page.clean, page.steps, page.epochs) == (True, 0, ())


def test_neighbours_with_one_flaw_are_told_as_one() -> None:
    history = history_of(range(40))
    for step in (3, 4, 5, 9, 20, 21):
        history.counts[step] = -1
    history.attempts[21] = 2
    history.digests[6] += 1
    page = audit("run", history, ORDER)
    assert [(flaw.first, flaw.last, flaw.attempt) for flaw in page.flaws] == [
        (3, 5, 1),
        (6, 6, 1),
        (9, 9, 1),
        (20, 20, 1),
        (21, 21, 2),
    ]


def test_gaps_are_told_also_at_both_ends() -> None:
    history = history_of([*range(10)])
    history.reached = 12
    del history.steps[4:6], history.attempts[4:6], history.samples[4:6]
    del history.counts[4:6], history.digests[4:6]
    page = audit("run", history, ORDER)
    assert [(flaw.first, flaw.last, flaw.problem) for flaw in page.flaws] == [
        (4, 5, "in no log"),
        (10, 11, "in no log"),
    ]
    assert rows(page) == [(0, 0, 48, 32, False, 0, 11)]
    late = history_of(range(3, 6), first=12)
    assert [(flaw.first, flaw.last) for flaw in audit("run", late, ORDER).flaws] == [(0, 2)]


def test_a_state_that_was_restored_elsewhere_is_told() -> None:
    history = history_of(range(10))
    history.restores += [(2, 5, 20), (3, 7, 30)]
    (flaw,) = audit("run", history, ORDER).flaws
    assert (flaw.first, flaw.attempt) == (7, 3)
    assert flaw.problem == "restored at sample 30 instead of 28"


# --- a run in storage ----------------------------------------------------------------------------


class Answers(Desk):
    """A desk that keeps its answer."""

    def __init__(self) -> None:
        super().__init__(as_json=True, console=Console(file=io.StringIO()))

    @property
    def told(self) -> Any:
        file = self._console.file
        assert isinstance(file, io.StringIO)
        return json.loads(file.getvalue())


def record(place: Path, *, fields: tuple[str, ...] = ("count", "digest"), **changes: Any) -> None:
    """Leave a run of twelve steps, as its workers would have taken them."""
    spec = text_run(place, **changes)
    corpus = prepare_corpus(spec.data, locate(spec.storage), sequence=spec.batch.sequence)
    run = leave_run(spec, corpus)
    stream = open_stream(
        spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="train"
    )
    size = spec.batch.global_size
    firsts = range(0, 12 * size, size)
    digests = digest_steps(list(firsts), size, stream.samples, spec.seed).tolist()
    for attempt, steps in ((1, range(8)), (2, range(6, 12))):
        log = EventLog(run, attempt)
        if steps[0]:
            log.record(EventKind.restored, step=steps[0], samples=steps[0] * size)
        for step in steps:
            ledger = {"count": size, "digest": f"{digests[step]:016x}"}
            told = {key: ledger[key] for key in fields}
            log.record(EventKind.step, step=step, samples=(step + 1) * size, loss=1.0, **told)
        log.close()


def asked(place: Path, name: str = "mill") -> AuditSpec:
    return AuditSpec(run=name, storage=str(place / "runs"))


def test_a_clean_run_is_code_0(tmp_path: Path) -> None:
    record(tmp_path)
    desk = Answers()
    assert act(asked(tmp_path), desk) == 0
    told = desk.told
    assert (told["clean"], told["steps"], told["taken_back"], told["attempts"]) == (True, 12, 2, 2)
    assert sum(row["proven"] for row in told["epochs"]) == 48


def test_a_run_that_is_not_clean_is_code_1(tmp_path: Path) -> None:
    record(tmp_path)
    log = tmp_path / "runs/mill/events/attempt-0002.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3] + lines[4:]))
    desk = Answers()
    assert act(asked(tmp_path), desk) == 1
    assert [flaw["first"] for flaw in desk.told["flaws"]] == [8]


def test_a_run_may_be_going_on(tmp_path: Path) -> None:
    record(tmp_path)
    with (tmp_path / "runs/mill/events/attempt-0002.jsonl").open("a") as log:
        log.write('{"kind":"step","at_s":1.0,"atte')
    assert act(asked(tmp_path), Answers()) == 0


def test_a_run_without_steps_has_nothing_to_prove(tmp_path: Path) -> None:
    leave_run(text_run(tmp_path))
    desk = Answers()
    assert act(asked(tmp_path), desk) == 0
    assert desk.told["epochs"] == []


def test_a_run_of_an_older_version_cannot_be_audited(tmp_path: Path) -> None:
    record(tmp_path, fields=())
    with refused(SpecError, tmp_path, "run: no step of", "an older version trained it"):
        act(asked(tmp_path), Answers())


def test_steps_of_an_older_version_are_named(tmp_path: Path) -> None:
    record(tmp_path)
    log = tmp_path / "runs/mill/events/attempt-0001.jsonl"
    log.write_text(log.read_text().replace('"digest"', '"other"'))
    desk = Answers()
    assert act(asked(tmp_path), desk) == 1
    (flaw,) = desk.told["flaws"]
    assert (flaw["first"], flaw["last"], flaw["problem"]) == (0, 5, Doubt.silent.value)


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    record(tmp_path)
    with refused(CheckpointError, tmp_path, "is no run; did you mean mill?"):
        act(asked(tmp_path, "mil"), Answers())


def test_a_run_whose_corpus_is_not_described_is_refused(tmp_path: Path) -> None:
    record(tmp_path)
    (tmp_path / "runs/mill/corpus.json").unlink()
    with refused(SpecError, tmp_path, "corpus.json is gone"):
        act(asked(tmp_path), Answers())


def test_the_order_is_that_of_the_stream_that_trains(tmp_path: Path) -> None:
    for spec in (text_run(tmp_path), tiny_run(storage=str(tmp_path / "runs"))):
        corpus: Corpus = prepare_corpus(
            spec.data, locate(spec.storage), sequence=spec.batch.sequence
        )
        leave_run(spec, corpus)
        stream = open_stream(
            spec.data, corpus, seed=spec.seed, sequence=spec.batch.sequence, split="train"
        )
        expected = Order(seed=spec.seed, count=spec.batch.global_size, size=stream.samples)
        assert read_order(run_of(spec)) == expected
