"""Failing checkpoints are told once per reason, counted, and shown until one is good again."""

from __future__ import annotations

import pytest

from tests.report.histories import NO_SPACE, History
from tidemill.report.alarm import Alarm, gist
from tidemill.spec.progress import EventKind


def hear(alarm: Alarm, history: History) -> list[str]:
    """The lines for all events of a history, which is emptied."""
    lines = [alarm.hear(event, 1000) for event in history.events]
    history.events.clear()
    return [line for line in lines if line is not None]


def started(source: str | None = None) -> tuple[Alarm, History]:
    alarm, history = Alarm(), History()
    history.start(restored=100 if source else None, source=source)
    hear(alarm, history)
    return alarm, history


def test_all_is_well() -> None:
    alarm, history = started()
    history.save(100)
    history.evaluate(100)
    assert len(hear(alarm, history)) == 2
    assert (alarm.raised, alarm.sign) == (False, "")


def test_the_same_reason_is_one_line_and_a_count() -> None:
    alarm, history = started()
    for tries in range(1, 6):
        history.fail_save(100, tries=tries)
    (line,) = hear(alarm, history)
    assert line.startswith("checkpoint of step 100 failed: cannot write runs/a/checkpoints/step-")
    assert alarm.sign == "SAVING FAILED 5x"


def test_another_reason_is_another_line() -> None:
    alarm, history = started()
    for reason in (NO_SPACE, "cannot write step-{step}: no connection", NO_SPACE):
        history.fail_save(100, reason)
    assert [("no space" in line) for line in hear(alarm, history)] == [True, False]


def test_giving_up_is_said_whatever_was_said_before() -> None:
    alarm, history = started()
    history.save(100)
    history.fail_save(200)
    history.fail_save(200, tries=2, retry_in_s=None)
    assert hear(alarm, history)[-1].startswith("NO CHECKPOINT of step 200: given up after 2 tries")
    assert alarm.sign == "NO CHECKPOINT since step 100"


def test_one_that_was_overtaken_is_lost() -> None:
    alarm, history = started()
    history.fail_save(100)
    assert hear(alarm, history)
    history.fail_save(200)
    (line,) = hear(alarm, history)
    assert line.startswith("checkpoint of step 200 failed")
    assert line.endswith("next try in 0.5s (1 checkpoint lost)")
    assert alarm.sign == "NO CHECKPOINT SAVED"
    history.fail_save(200, tries=2)
    assert hear(alarm, history) == []


def test_lines_become_fewer_the_longer_it_lasts() -> None:
    alarm, history = started()
    lost = []
    for step in range(1, 1001):
        for tries in (1, 2, 3):
            history.fail_save(step, tries=tries, retry_in_s=None if tries == 3 else 1.0)
        lost += [line.rpartition("(")[2] for line in hear(alarm, history) if "lost" in line]
    assert lost == [f"{2**n:,} checkpoints lost)" for n in range(1, 10)]


def test_a_good_one_ends_it_and_says_so() -> None:
    alarm, history = started()
    for tries in (1, 2):
        history.fail_save(100, tries=tries)
    history.save(100, stall_s=0.002)
    *_, line = hear(alarm, history)
    assert line.endswith("training stopped 2 ms), after 2 failed tries")
    assert alarm.sign == ""
    history.save(200)
    history.fail_save(300)
    good, bad = hear(alarm, history)
    assert "failed" not in good
    assert "failed" in bad


def test_an_attempt_takes_its_worries_with_it() -> None:
    alarm, history = started()
    history.save(100)
    history.fail_save(200, retry_in_s=None)
    hear(alarm, history)
    history.start(restored=100)
    hear(alarm, history)
    assert alarm.sign == ""
    history.fail_save(200, retry_in_s=None)
    assert len(hear(alarm, history)) == 1
    assert alarm.sign == "NO CHECKPOINT since step 100"


@pytest.mark.parametrize(
    ("source", "sign"),
    [
        ("storage", "NO CHECKPOINT since step 100"),
        ("near", "NO CHECKPOINT SAVED"),
        ("fork", "NO CHECKPOINT SAVED"),
    ],
)
def test_only_storage_holds_checkpoints(source: str, sign: str) -> None:
    alarm, history = started(source)
    history.fail_save(200, retry_in_s=None)
    hear(alarm, history)
    assert alarm.sign == sign


def test_near_copies_are_quiet_and_refusals_are_said_once() -> None:
    alarm, history = started()
    for step in range(20, 200, 20):
        history.keep_near(step)
        history.add(EventKind.near_refused, step=step, reason=f"step-{step} needs {step} MiB")
    history.add(EventKind.near_refused, step=200, reason="no other node")
    assert hear(alarm, history) == [
        "no near copy of step 20: step-20 needs 20 MiB",
        "no near copy of step 200: no other node",
    ]
    assert not alarm.raised


def test_a_gist_leaves_out_what_changes_from_step_to_step() -> None:
    told = gist("cannot  write\ns3://b/step-0000000300-a0001/.rank-00001.bin.3fa9: no space")
    assert told == gist("cannot write s3://b/step-0000000400-a0002/.rank-00003.bin.77e1: no space")
    assert told != gist("cannot write s3://b/step-0000000400-a0002/.rank-00003.bin.77e1: no way")
