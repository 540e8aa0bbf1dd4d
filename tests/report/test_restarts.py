"""Each change of the workers is told with the time line of what it cost."""

from __future__ import annotations

import math

from tests.report.histories import History
from tidemill.report.ledger import make_run_report
from tidemill.report.restarts import MOST_TOLD, tell_restarts
from tidemill.spec.progress import EventKind


def tell(history: History) -> list[str]:
    report = make_run_report(history.events)
    assert report is not None
    return list(tell_restarts(report))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def started() -> History:
    history = History()
    history.start()
    history.steps(0, 3)
    return history


def test_nothing_is_said_of_nothing() -> None:
    assert tell(started()) == []


def test_each_change_has_a_row_with_its_stages() -> None:
    history = started()
    for cause, stall_s in (("kill", 1.151), ("grow", 0.4)):
        history.start(restored=4, source="memory")
        history.step(4)
        history.rejoin(5, cause, stall_s=stall_s)
    overview, empty, heads, rule, *rows = tell(history)
    causes = "1 because a worker was lost, 1 because there is room for more"
    stalls = "0.8s without a step at the median, 1.2s at most"
    assert (overview, empty) == (f"- 2 changes of the workers: {causes}; {stalls}", "")
    assert len(cells(heads)) == len(cells(rule)) == len(cells(rows[0]))
    told = dict(zip(cells(heads), cells(rows[0]), strict=True))
    assert told == {
        "attempt": "2",
        "step": "5",
        "cause": "kill",
        "workers": "3 → 2",
        "kept": "2",
        "fresh": "0",
        "detect": "0.1s",
        "stop": "50 ms",
        "decide": "1 ms",
        "place": "",
        "spawn": "0 ms",
        "join": "0.2s",
        "load": "0.3s",
        "first step": "0.5s",
        "without a step": "1.2s",
        "taken again": "1",
    }
    assert cells(rows[1])[:3] == ["3", "5", "grow"]


def test_of_many_changes_the_newest_have_a_row() -> None:
    history = started()
    for step in range(MOST_TOLD + 7):
        history.rejoin(step)
    overview, _, _, _, *rows = tell(history)
    assert overview.startswith(f"- {MOST_TOLD + 7} changes of the workers: ")
    assert overview.endswith(f"; the newest {MOST_TOLD} are")
    assert [cells(row)[1] for row in rows] == [str(step) for step in range(7, MOST_TOLD + 7)]


def test_what_announced_a_change_is_told() -> None:
    history = started()
    history.add(EventKind.notice, nodes=["ab|c"], reason="`drain`", deadline_s=30.0)
    history.rejoin(5)
    history.add(EventKind.hung, rank=1, step=5, phase="data", after_s=9.0)
    assert tell(history)[-3:] == [
        "",
        "- attempt 1: `1 node goes in 30s: 'drain' (ab\\|c)`",
        "- attempt 1: `rank 1 hangs in step 5 (data), for 9.0s so far`",
    ]


def test_of_many_signs_the_newest_are_told() -> None:
    history = started()
    for rank in range(MOST_TOLD + 2):
        history.add(EventKind.straggler, rank=rank, slowdown=2.0, what="data")
    first, second, *_ = lines = tell(history)
    assert first == "- 2 earlier notices left out"
    assert second.startswith("- attempt 1: `rank 2 is slow")
    assert len(lines) == MOST_TOLD + 1


def test_odd_fields_break_nothing() -> None:
    history = started()
    names = ("cause", "before", "world", "kept", "detect_s", "stall_s", "redone", "step", "nodes")
    for odd in (None, "a|b\nc", [], {}, math.nan, -math.inf, True):
        for kind in (EventKind.rejoined, EventKind.notice, EventKind.hung, EventKind.straggler):
            history.add(kind, **dict.fromkeys(names, odd))
    lines = tell(history)
    assert all("\n" not in line for line in lines)
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
