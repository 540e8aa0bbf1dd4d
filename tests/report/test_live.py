"""What a person sees of a run, on a terminal and in a log."""

from __future__ import annotations

import io
import itertools
import math
import re
import threading

import pytest
from rich.console import Console

from tests.report.histories import History
from tests.report.screen import Screen
from tidemill.report import live
from tidemill.report.live import LiveView
from tidemill.spec.progress import Event, EventKind

REASON = "rank-00001.bin: [bold]sha256[/bold] differs"


@pytest.fixture(autouse=True)
def _drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REDRAW_S", 0.0)


def terminal(width: int = 120) -> tuple[Screen, Console]:
    screen = Screen()
    return screen, Console(file=screen, force_terminal=True, width=width, _environ={})


def plain(events: list[Event], total_steps: int, **environment: str) -> list[str]:
    """The lines of a log."""
    file = io.StringIO()
    forced = bool(environment) or None
    with LiveView(
        total_steps, console=Console(file=file, force_terminal=forced, _environ=environment)
    ) as view:
        view.feed(events)
    assert "\x1b" not in file.getvalue()
    return file.getvalue().splitlines()


def step_lines(lines: list[str]) -> list[int]:
    return [
        int(line.split("/")[0].split()[-1])
        for line in lines
        if line.startswith("step") and "tok/s" in line
    ]


def test_the_bar_says_where_the_run_is() -> None:
    screen, console = terminal()
    history = History()
    history.start(world=3)
    history.steps(0, 9, seconds=0.5, loss=2.25)
    history.evaluate(10, loss=1.5)
    view = LiveView(170, console=console)
    view.feed(history.events)
    *_, bar = screen.shown
    assert bar.startswith("step  10/170 ━")
    assert bar.endswith("loss 2.2500  val 2.164 bits/byte  2.00k tok/s  3 workers  eta 1m 20s")
    assert len(bar) <= 120
    assert not screen.cursor_shown
    view.close()


def test_nothing_is_left_of_the_bar_but_what_was_said_above_it() -> None:
    screen, console = terminal()
    history = History()
    history.start(world=4)
    history.steps(0, 4)
    history.finish(5)
    with LiveView(5, console=console) as view:
        for event in history.events:
            view.feed([event])
    assert screen.shown == [
        "attempt 1: 4 workers, ddp, fp32, 1.23M parameters, cpu",
        "finished 5 steps in 1m 20s, loss 1.5000",
    ]
    assert screen.cursor_shown


def test_the_bar_never_flickers_and_never_is_two() -> None:
    screen, console = terminal()
    history = History()
    history.start()
    with LiveView(50, console=console) as view:
        view.feed(history.events)
        for step in range(50):
            history.step(step)
            if step % 10 == 0:
                history.add(EventKind.checkpoint_refused, name=f"step-{step}", reason=REASON)
            view.feed(history.events[-2:] if step % 10 == 0 else history.events[-1:])
        bars = [sum("━" in row for row in frame) for frame in screen.frames]
    first = bars.index(1)
    assert set(bars[first:]) == {1}
    assert sum("━" in row for row in screen.shown) == 0


def test_a_resumed_run_starts_where_it_was_restored() -> None:
    screen, console = terminal()
    history = History()
    history.start(restored=40)
    with LiveView(100, console=console) as view:
        view.feed(history.events)
        notice, bar = screen.shown[-2:]
        assert notice == "restored step 40"
        assert bar.startswith("step  40/100")
        history.step(40)
        view.feed(history.events[-1:])
        assert screen.shown[-1].startswith("step  41/100")


def test_changes_of_the_workers_are_told_as_they_come() -> None:
    history = History()
    history.start(world=3)
    history.steps(0, 3)
    history.add(EventKind.notice, step=4, nodes=["ab"], reason="drain", deadline_s=30.0)
    history.add(EventKind.hung, rank=1, node="ab", step=4, phase="data", after_s=9.0)
    history.add(EventKind.straggler, rank=1, node="ab", slowdown=2.0, what="compute")
    history.start(world=2, restored=4, source="memory")
    history.step(4)
    history.rejoin(5)
    history.add(EventKind.resizing, step=5, cause="grow")
    told = [line for line in plain(history.events, 100) if not line.startswith(("step  ", "att"))]
    going_on = "going on at step 5 with 3 → 2 workers: a worker was lost; 1.2s without a step"
    assert told == [
        "1 node goes in 30s: drain (ab)",
        "rank 1 on ab hangs in step 4 (data), for 9.0s so far",
        "rank 1 on ab is slow in compute: 2.0 times as long as the others take",
        "restored step 4 from the memory of its workers",
        f"{going_on}, 1 step taken again",
        "step 5 is the last of this group: there is room for more",
    ]


def test_steps_that_are_not_told_in_full_move_the_bar_without_a_word() -> None:
    history = History()
    history.start()
    history.step(0)
    for step in range(1, 10):
        history.add(EventKind.used, step=step, samples=8, count=8, digest="0" * 16)
    history.add(EventKind.used, step="?")
    assert len(plain(history.events, 100)) == 2  # the attempt and its first step
    screen, console = terminal()
    with LiveView(100, console=console) as view:
        view.feed(history.events)
        assert screen.shown[-1].startswith("step  10/100")


def test_what_is_told_late_is_not_news() -> None:
    history = History()
    history.start()
    history.steps(0, 3)
    history.start(restored=5, source="memory")
    expected = plain(history.events, 100)
    late = [
        Event(kind=kind, at_s=0.0, attempt=1, fields={"step": step, "late": 2})
        for kind, step in ((EventKind.step, 4), (EventKind.restored, 0), (EventKind.evaluated, 5))
    ]
    assert plain([*history.events[:-1], *late, history.events[-1]], 100) == expected


def test_notices_are_literal_and_coloured() -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=60, color_system="standard", _environ={}
    )
    history = History()
    history.start()
    history.add(EventKind.checkpoint_refused, name="step-0000000040-a0001", reason=REASON)
    history.add(EventKind.failed, rank=1, error="ValueError: one\ntwo", traceback="...")
    with LiveView(10, console=console) as view:
        view.feed(history.events)
    shown = file.getvalue()
    assert f"\x1b[33mrefused checkpoint step-0000000040-a0001: {REASON}\x1b[0m\n" in shown
    assert "\x1b[1;31mrank 1 failed: ValueError: one two\x1b[0m\n" in shown


@pytest.mark.parametrize("width", [20, 44, 60, 80, 100, 200])
def test_the_bar_is_one_row_on_any_terminal(width: int) -> None:
    screen, console = terminal(width)
    history = History()
    history.start()
    history.steps(0, 9)
    history.evaluate(10)
    view = LiveView(1000, console=console)
    view.feed(history.events)
    *_, bar = screen.shown
    assert bar.startswith("step   10/")
    assert len(bar) <= width
    assert width < 44 or "loss 2.0000" in bar
    assert width < 80 or "eta" in bar
    view.close()


def test_a_view_that_is_closed_before_the_end_says_where_it_was() -> None:
    screen, console = terminal()
    history = History()
    history.start()
    history.steps(0, 4)
    with LiveView(10, console=console) as view:
        view.feed(history.events)
    assert screen.shown[-1].startswith("step  5/10  loss 2.0000")
    assert "━" not in screen.shown[-1]


def test_an_empty_view_says_nothing() -> None:
    screen, console = terminal()
    with LiveView(10, console=console) as view:
        view.feed([])
    assert screen.getvalue() == ""
    assert screen.shown == []


def test_a_log_has_the_first_step_then_one_line_in_five_seconds() -> None:
    history = History()
    history.start()
    history.steps(0, 50, seconds=0.5)
    steps = step_lines(plain(history.events, 1000))
    assert steps[:5] == [1, 11, 21, 31, 41]


def test_a_quick_run_has_a_line_for_every_tenth() -> None:
    history = History()
    history.start()
    history.steps(0, 99, seconds=0.001)
    assert step_lines(plain(history.events, 100)) == [1, *range(10, 101, 10)]


def test_a_long_run_has_a_line_a_minute() -> None:
    history = History()
    history.start()
    history.steps(0, 7200, seconds=1)
    steps = step_lines(plain(history.events, 10**9))
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert gaps[0] == 5
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60


def test_a_log_tells_everything_that_is_no_step() -> None:
    history = History()
    history.start(world=1)
    history.add(EventKind.checkpoint_refused, name="step-9", reason=REASON)
    history.add(EventKind.restored, step=4, samples=32, checkpoint="step-4", saved_world=2)
    history.evaluate(4, byte_level=False)
    history.save(5)
    history.add(EventKind.stop_requested, step=5)
    history.add(EventKind.stopped, step=5)
    assert plain(history.events, 10) == [
        "attempt 1: 1 worker, ddp, fp32, 1.23M parameters, cpu",
        f"refused checkpoint step-9: {REASON}",
        "restored step 4 from step-4, saved by 2 workers",
        "step  4/10  val loss 2.0000",
        "saved step-0000000005-a0001 (3.00 MiB in 0.2s)",
        "asked to stop at step 5: saving a checkpoint first",
        "stopped at step 5/10: the same command goes on from there",
    ]


def failing(lost: int) -> History:
    """Saves step 100, then loses as many checkpoints, with three tries each."""
    history = History()
    history.start()
    history.steps(0, 99)
    history.save(100)
    for step in range(200, 100 * lost + 101, 100):
        history.steps(step - 100, step - 1)
        for tries in (1, 2, 3):
            history.fail_save(step, tries=tries, retry_in_s=None if tries == 3 else 1.0)
    return history


def test_a_log_shows_failing_checkpoints_at_every_step_and_tells_of_them_rarely() -> None:
    history = failing(lost=8)
    history.steps(900, 949)
    history.save(950, stall_s=0.002)
    history.steps(950, 999)
    lines = plain(history.events, 1000)
    told = [line for line in lines if "no space is left on the disk" in line]
    assert [line.split(":")[0] for line in told] == [
        "checkpoint of step 200 failed",
        "NO CHECKPOINT of step 200",
        "NO CHECKPOINT of step 300",
        "NO CHECKPOINT of step 500",
        "NO CHECKPOINT of step 900",
    ]
    assert told[-1].endswith("(8 checkpoints lost)")
    (good,) = (
        index for index, line in enumerate(lines) if line.startswith("saved step-0000000950")
    )
    assert lines[good].endswith("training stopped 2 ms), after 24 failed tries")
    bad = lines.index(told[1])
    assert {"  NO CHECKPOINT since step 100  " in line for line in lines[bad + 1 : good]} == {
        True,
        False,  # the lines of the failures themselves
    }
    steps = [line for line in lines[bad + 1 : good] if line.startswith("step")]
    assert all("/1000  NO CHECKPOINT since step 100  loss" in line for line in steps)
    assert not any("NO CHECKPOINT" in line for line in lines[good + 1 :])


def test_a_terminal_shows_failing_checkpoints_until_one_is_good() -> None:
    screen, console = terminal(80)
    history = failing(lost=2)
    with LiveView(1000, console=console) as view:
        view.feed(history.events)
        assert screen.shown[-1].startswith("step  300/1000 NO CHECKPOINT since step 100 ━")
        assert len(screen.shown[-1]) <= 80
        history.save(301)
        view.feed(history.events[-1:])
        assert screen.shown[-2].startswith(
            "saved step-0000000301-a0001 (3.00 MiB in 0.2s), after 6 f"
        )
        assert screen.shown[-1].startswith("step  300/1000 ━")
        history.save(302)
        view.feed(history.events[-1:])
        assert "0302" not in "".join(screen.shown)


@pytest.mark.parametrize("width", [44, 60, 80, 100, 200])
def test_failing_checkpoints_are_seen_on_any_terminal(width: int) -> None:
    screen, console = terminal(width)
    history = failing(lost=1)
    history.steps(200, 299)
    history.evaluate(300)
    with LiveView(1000, console=console) as view:
        view.feed(history.events)
        assert len(screen.shown[-1]) <= width
        assert ("NO CHECKPOINT since step 100" if width > 44 else "NO CHECK") in screen.shown[-1]


def test_a_failing_checkpoint_is_red_and_a_good_one_after_it_green() -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=120, color_system="standard", _environ={}
    )
    history = failing(lost=1)
    history.save(201)
    with LiveView(1000, console=console) as view:
        for event in history.events:
            view.feed([event])
    shown = file.getvalue()
    assert "\x1b[1;31mNO CHECKPOINT of step 200: given up after 3 tries: " in shown
    assert "\x1b[1;31mNO CHECKPOINT since step 100\x1b[0m" in shown
    assert "\x1b[32msaved step-0000000201-a0001" in shown


def test_near_copies_are_a_quiet_sign() -> None:
    history = History()
    history.start(world=4)
    for first, nodes in ((0, 2), (10, 2), (20, 1)):
        history.steps(first, first + 9, seconds=1)
        history.keep_near(first + 10, nodes)
    history.steps(30, 39, seconds=1)
    history.start(world=4)
    history.steps(40, 40)
    lines = plain(history.events, 41)
    assert not any(line.startswith("kept") for line in lines)
    signs = [line.partition("workers  ")[2].partition("eta")[0].strip() for line in lines]
    told = ["near 10", "near 10", "near 20", "near 20", "near 20"]
    assert signs == ["", "", "", "", *told, *["near 30 on 1 node"] * 2, "", ""]


def test_lines_of_a_log_are_never_wrapped() -> None:
    history = History()
    history.start()
    history.add(EventKind.checkpoint_refused, name="step-9", reason="x" * 300)
    assert len(plain(history.events, 10)) == 2


def test_a_dumb_terminal_gets_lines() -> None:
    history = History()
    history.start()
    history.steps(0, 0)
    assert step_lines(plain(history.events, 10, TERM="dumb")) == [1]


def test_rate_and_time_to_go_follow_a_change_of_world() -> None:
    history = History()
    history.start(world=4)
    history.steps(0, 99, seconds=0.25)
    history.start(world=1, restored=100)
    history.steps(100, 100, seconds=1.0)
    line = plain(history.events, 200)[-1]
    assert line.endswith("1.00k tok/s  1 worker  eta 1m 39s")


def test_time_to_go_counts_what_is_done_between_steps() -> None:
    history = History()
    history.start()
    for step in range(100):
        history.step(step, seconds=0.5)
        history.now_s += 0.5  # saving, validating
    line = plain(history.events, 200)[-1]
    assert "2.00k tok/s" in line
    assert line.endswith("eta 1m 40s")


def test_odd_fields_break_nothing() -> None:
    history = History()
    history.start()
    for kind in EventKind:
        history.add(kind)
        history.add(kind, step=None, loss="?", world="two", bytes=None, seconds=[], name=3)
    history.step(0, loss=math.nan, tokens=None)
    lines = plain(history.events, 10)
    assert any("loss nan" in line for line in lines)
    screen, console = terminal()
    with LiveView(10, console=console) as view:
        view.feed(history.events)
    assert any("loss nan" in row for row in screen.shown)


def test_the_rate_forgets_slowly() -> None:
    history = History()
    history.start()
    history.steps(0, 199, seconds=0.5)
    history.steps(200, 279, seconds=0.25)
    rate = plain(history.events, 280)[-1].split("  ")[2]
    # 20 s of 4k after 100 s of 2k: one e-folding, so 1/e of the old rate is left.
    assert rate == "3.26k tok/s"


def test_the_bar_fills() -> None:
    filled: list[int] = []
    for done in (1, 5, 10):
        file = io.StringIO()
        console = Console(
            file=file, force_terminal=True, width=80, color_system="standard", _environ={}
        )
        history = History()
        history.start()
        history.steps(0, done - 1)
        view = LiveView(10, console=console)
        view.feed(history.events)
        row = file.getvalue().splitlines()[-1]
        filled.append(sum(len(part) for part in re.findall("\x1b\\[3[26]m(━+)", row)))
        view.close()
    assert 0 < filled[0] < filled[1] < filled[2]
    assert filled[2] > 1.8 * filled[1]


def test_the_bar_is_drawn_by_feeding_alone_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "REDRAW_S", math.inf)
    screen, console = terminal()
    history = History()
    history.start()
    threads = threading.active_count()
    view = LiveView(100, console=console)
    view.feed(history.events)
    assert threading.active_count() == threads
    written = len(screen.frames)
    for step in range(100):
        history.step(step)
        view.feed(history.events[-1:])
    assert len(screen.frames) == written
    view.close()


def test_a_dumb_terminal_gets_them_at_once() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "dumb"})
    history = History()
    history.start()
    history.steps(0, 0)
    view = LiveView(10, console=console)
    view.feed(history.events)
    assert step_lines(file.getvalue().splitlines()) == [1]
    view.close()


@pytest.mark.parametrize("world", [math.nan, math.inf, "two", None])
def test_an_odd_world_is_left_out(world: object) -> None:
    history = History()
    history.attempt = 1
    history.add(EventKind.attempt_started, world=world)
    history.step(0)
    assert plain(history.events, 10)[-1] == "step  1/10  loss 2.0000  2.00k tok/s  eta 4.5s"


@pytest.mark.parametrize("forced", [False, True])
def test_what_is_not_about_an_event_can_be_said(*, forced: bool) -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=forced, width=80, _environ={})
    history = History()
    history.start()
    history.steps(0, 1)
    history.finish(2)
    with LiveView(2, console=console) as view:
        view.feed(history.events[:2])
        view.say("[bold]waiting[/bold] for a node " + "x" * 60)
        view.feed(history.events[2:])
    assert "[bold]waiting[/bold] for a node " + "x" * 60 in "".join(screen.shown)
    assert not any("━" in row for row in screen.shown)
