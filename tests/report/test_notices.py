"""One line of English per event, whatever is missing from it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tidemill.report.notices import number, one_line, say_event, say_held_out, say_setup
from tidemill.spec.progress import Event, EventKind

SETUP = {
    "world": 2,
    "strategy": "fsdp2",
    "precision": "bf16",
    "parameters": 1_200_000,
    "device": "cpu",
}
NODE = "3f2a77b0" * 7
GOING_ON = "going on at step 9 with 3 → 2 workers:"


def say(kind: EventKind, **fields: Any) -> str:
    return say_event(Event(kind=kind, at_s=0.0, attempt=3, fields=fields), 1000)


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        ("attempt_started", SETUP, "attempt 3: 2 workers, fsdp2, bf16, 1.20M parameters, cpu"),
        ("attempt_started", {}, "attempt 3: "),
        ("restored", {"step": 7}, "restored step 7"),
        (
            "restored",
            {"step": 7, "checkpoint": "step-7", "saved_world": 1},
            "restored step 7 from step-7, saved by 1 worker",
        ),
        (
            "restored",
            {"step": 7, "checkpoint": "step-7", "saved_world": 1, "source": "storage"},
            "restored step 7 from step-7, saved by 1 worker",
        ),
        (
            "restored",
            {"step": 7, "checkpoint": "step-7", "saved_world": 3, "source": "near"},
            "restored step 7 from step-7 in near memory, saved by 3 workers",
        ),
        (
            "restored",
            {"step": 7, "checkpoint": "step-7", "run": "base", "source": "fork"},
            "going on from step 7 of base (step-7)",
        ),
        ("restored", {"step": 7, "source": "fork"}, "going on from step 7 of another run"),
        (
            "restored",
            {"step": 0, "checkpoint": "s3://models/base.safetensors", "source": "weights"},
            "starting from the weights in s3://models/base.safetensors",
        ),
        ("restored", {"step": 0, "source": "weights"}, "starting from weights"),
        ("restored", {"step": 7, "source": "tomorrow"}, "restored step 7"),
        (
            "evaluated",
            {"step": 50, "loss": 1.5, "bits_per_byte": 2.16404},
            "step   50/1000  val 2.164 bits/byte",
        ),
        (
            "evaluated",
            {"step": 50, "loss": 1.5, "bits_per_byte": None},
            "step   50/1000  val loss 1.5000",
        ),
        (
            "checkpoint_saved",
            {"step": 9, "name": "step-9", "bytes": 2**20, "seconds": 0.25},
            "saved step-9 (1.00 MiB in 0.2s)",
        ),
        (
            "checkpoint_saved",
            {"step": 9, "name": "step-9", "bytes": 9846000, "seconds": 0.4, "stall_s": 0.002},
            "saved step-9 (9.39 MiB in 0.4s, training stopped 2 ms)",
        ),
        ("checkpoint_saved", {}, "saved ? (? in ?)"),
        (
            "checkpoint_failed",
            {"step": 9, "reason": "no\nspace", "tries": 2, "retry_in_s": 4.0},
            "checkpoint of step 9 failed: no space; next try in 4.0s",
        ),
        (
            "checkpoint_failed",
            {"step": 9, "reason": "no space", "tries": 7, "retry_in_s": None},
            "NO CHECKPOINT of step 9: given up after 7 tries: no space",
        ),
        ("checkpoint_failed", {}, "NO CHECKPOINT of step ?: given up: ?"),
        (
            "near_kept",
            {"step": 9, "nodes": 2, "bytes": 2**20, "seconds": 0.05},
            "kept step 9 in the memory of 2 nodes (1.00 MiB in 50 ms)",
        ),
        ("near_kept", {}, "kept step ? in the memory of ? nodes (? in ?)"),
        ("near_refused", {"step": 9, "reason": "full"}, "no near copy of step 9: full"),
        ("near_refused", {}, "no near copy of step ?: ?"),
        (
            "checkpoint_refused",
            {"name": "step-9", "reason": "size\n  differs"},
            "refused checkpoint step-9: size differs",
        ),
        ("checkpoint_refused", {}, "refused checkpoint ?: ?"),
        ("stop_requested", {"step": 9}, "asked to stop at step 9: saving a checkpoint first"),
        ("stopped", {"step": 9}, "stopped at step 9/1000: the same command goes on from there"),
        (
            "finished",
            {"step": 1000, "loss": 1.25, "seconds": 80.0},
            "finished 1000 steps in 1m 20s, loss 1.2500",
        ),
        ("finished", {}, "finished ? steps in ?, loss nan"),
        ("failed", {"rank": 0, "error": "one\ntwo"}, "rank 0 failed: one two"),
        ("failed", {}, "rank ? failed: ?"),
        ("step", {"step": 3}, "step 3"),
        ("used", {"step": 3}, "step 3"),
        (
            "restored",
            {"step": 7, "saved_world": 3, "source": "memory"},
            "restored step 7 from the memory of its workers, saved by 3 workers",
        ),
        (
            "notice",
            {"step": 9, "nodes": [NODE], "reason": "drain", "deadline_s": 30.0},
            f"1 node goes in 30s: drain ({NODE[:12]})",
        ),
        (
            "notice",
            {"nodes": ["a", "b"], "reason": "price\nrose", "deadline_s": None},
            "2 nodes go at any moment: price rose (a, b)",
        ),
        ("notice", {}, "0 nodes go at any moment: ?"),
        (
            "resizing",
            {"step": 9, "cause": "grow"},
            "step 9 is the last of this group: there is room for more",
        ),
        ("resizing", {"step": 9}, "step 9 is the last of this group: another size"),
        (
            "rejoined",
            {"step": 9, "cause": "kill", "before": 3, "world": 2, "stall_s": 1.4, "redone": 1},
            f"{GOING_ON} a worker was lost; 1.4s without a step, 1 step taken again",
        ),
        (
            "rejoined",
            {"step": 9, "cause": "tide", "world": 4, "stall_s": 0.02, "redone": 0},
            "going on at step 9 with 4 workers: tide; 20 ms without a step",
        ),
        (
            "rejoined",
            {},
            "going on at step ? with ? workers: another size; ? without a step",
        ),
        (
            "straggler",
            {"rank": 2, "node": NODE, "slowdown": 1.84, "what": "data"},
            f"rank 2 on {NODE[:12]} is slow in data: 1.8 times as long as the others take",
        ),
        ("straggler", {}, "rank ? is slow in ?: nan times as long as the others take"),
        (
            "hung",
            {"rank": 2, "node": NODE, "step": 9, "phase": "data", "after_s": 12.0},
            f"rank 2 on {NODE[:12]} hangs in step 9 (data), for 12s so far",
        ),
        ("hung", {}, "rank ? hangs in step ? (?), for ? so far"),
    ],
)
def test_what_is_said(kind: str, fields: dict[str, Any], line: str) -> None:
    assert say(EventKind(kind), **fields) == line


@pytest.mark.parametrize("odd", [None, "x", [], {}, math.nan, -math.inf, 10**30, True])
@pytest.mark.parametrize("kind", list(EventKind))
def test_odd_fields_cost_no_exception(kind: EventKind, odd: Any) -> None:
    names = ("step", "loss", "bits_per_byte", "bytes", "seconds", "name", "reason", "rank", "error")
    names += ("saved_world", "checkpoint", "source", "run", "stall_s", "nodes", "node")
    names += ("cause", "before", "redone", "deadline_s", "slowdown", "what", "phase", "after_s")
    for name in (*SETUP, *names, "tries", "retry_in_s"):
        assert "\n" not in say(kind, **{name: odd})


def test_what_is_not_known_of_a_setup_is_left_out() -> None:
    assert say_setup({"world": 1, "device": "cuda"}) == "1 worker, cuda"
    assert say_setup({"world": "two", "parameters": "many"}) == ""


def test_a_held_out_loss_is_told_in_bits_where_it_has_them() -> None:
    assert say_held_out({"loss": 1.5, "bits_per_byte": 0}) == "val 0.000 bits/byte"
    assert say_held_out({"loss": 1.5}) == "val loss 1.5000"
    assert say_held_out({}) == "val loss nan"


def test_a_number_is_a_number_or_the_other_one() -> None:
    assert number({"a": 0}, "a", 5.0) == 0
    assert [number({"a": odd}, "a", 5.0) for odd in (None, "1", [])] == [5.0] * 3
    assert math.isnan(number({}, "a"))


def test_one_line_is_one_line() -> None:
    assert one_line(" a\r\n\tb  c ") == "a b c"
    assert one_line(None) == "None"
