"""Pages about checkpoints are read at 80 columns and at 120, and say the same on both."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tidemill.report.inventory import Fate, Inventory, Page, Proof, Pruning, Row, Verification
from tidemill.report.pages import make_page, make_proof_line

NOW_S = 1_800_000_000.0
PLACE = "/home/you/runs/hello"
WHOLE = Row(
    name="step-0000000150-a0001",
    step=150,
    attempt=1,
    state="whole",
    loss=2.34561,
    world=2,
    strategy="deepspeed_z2",
    precision="bf16",
    bytes=9_856_316,
    at_s=NOW_S - 125,
    origin={},
)
OLDER = replace(WHOLE, name="step-0000000100-a0001", step=100, at_s=NOW_S - 7300)
TORN = Row(
    name="step-0000000160-a0001",
    step=160,
    attempt=1,
    state="torn",
    problem="it has no manifest",
    bytes=5000,
    origin={},
)
CORRUPT = replace(OLDER, step=50, state="corrupt", problem="rank-00000.bin is missing")


def shown(page: Page, width: int = 80) -> list[str]:
    """The lines of a page that are not blank, without colours or trailing spaces."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(make_page(page, NOW_S))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return [line for line in lines if line]


def words(line: str) -> str:
    return " ".join(line.split())


def listed(*rows: Row, width: int = 80) -> list[str]:
    newest = next((row.name for row in rows if row.state == "whole"), "")
    return shown(Inventory(place=PLACE, newest=newest, checkpoints=rows), width)


@pytest.mark.parametrize("width", [80, 120])
def test_a_list_is_a_line_for_each(width: int) -> None:
    assert [words(line) for line in listed(WHOLE, OLDER, width=width)[:2]] == [
        "/home/you/runs/hello: 2 checkpoints, 18.8 MiB",
        "step loss saved by size age state",
    ]
    assert [words(line) for line in listed(WHOLE, OLDER, width=width)[3:]] == [
        "150 2.3456 2 × deepspeed_z2 bf16 9.40 MiB 2m 05s whole, newest",
        "100 2.3456 2 × deepspeed_z2 bf16 9.40 MiB 2h 01m whole",
    ]


def test_long_numbers_and_names_are_not_cut_at_80_columns() -> None:
    big = replace(WHOLE, step=1_234_567, val_loss=10.5, world=1024, bytes=2**41, at_s=NOW_S - 4e5)
    text = " ".join(listed(big, OLDER))
    for part in ("1,234,567", "2.3456", "10.5000", "1024", "deepspeed_z2", "2.00 TiB", "4d 15h"):
        assert part in text
    assert "…" not in text


def test_held_out_loss_has_a_column_where_there_is_one() -> None:
    head, _, first, second = listed(replace(WHOLE, val_loss=2.5), OLDER)[1:]
    assert words(head) == "step loss val saved by size age state"
    assert "2.3456 2.5000 2 ×" in words(first)
    assert "100 2.3456 2 ×" in words(second)


def test_attempts_have_a_column_where_a_step_was_saved_twice() -> None:
    head, _, first, second = listed(replace(WHOLE, name="step-0000000150-a0002", attempt=2), WHOLE)[
        1:
    ]
    assert words(head).startswith("step attempt loss")
    assert (words(first)[:5], words(second)[:5]) == ("150 2", "150 1")


def test_why_one_is_not_whole_stands_below_the_table() -> None:
    lines = listed(TORN, replace(TORN, step=161), WHOLE, CORRUPT)
    assert [words(line) for line in lines[3:5]] == ["160 4.88 KiB torn", "161 4.88 KiB torn"]
    assert words(lines[6]).endswith("2h 01m corrupt")
    assert lines[7:] == [
        "step-0000000100-a0001: rank-00000.bin is missing",
        "torn: no manifest, so never committed: being written, or left behind by a kill",
    ]


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ({"run": "tide", "step": 40}, "started from step 40 of tide"),
        ({"weights": "s3://bucket/w"}, "started from the weights in s3://bucket/w"),
    ],
)
def test_where_a_run_came_from_is_told_once(origin: dict[str, Any], told: str) -> None:
    lines = listed(TORN, replace(WHOLE, origin=origin), replace(OLDER, origin=origin))
    assert lines[1] == told
    assert sum("started from" in line for line in lines) == 1
    assert "started" not in " ".join(listed(WHOLE))


def test_a_loss_that_is_not_known_is_left_blank() -> None:
    line = listed(replace(WHOLE, loss=None, at_s=None))[3]
    assert words(line) == "150 2 × deepspeed_z2 bf16 9.40 MiB whole, newest"


def test_a_run_without_checkpoints_says_so() -> None:
    assert listed() == ["/home/you/runs/hello: no checkpoint yet"]


# --- verify -----------------------------------------------------------------------------------


def proof(row: Row, *, counts: bool = True) -> Proof:
    return Proof(checkpoint=row, seconds=0.2, counts=counts)


def test_a_proof_is_a_line() -> None:
    told = "step-0000000150-a0001  whole    9.40 MiB in 0.2s, 47.0 MiB/s"
    assert make_proof_line(proof(WHOLE)).plain == told
    told = "step-0000000100-a0001  corrupt  rank-00000.bin is missing"
    assert make_proof_line(proof(CORRUPT)).plain == told


def test_the_outcome_of_all_proofs_is_told() -> None:
    good = Verification(place=PLACE, proofs=(proof(WHOLE), proof(OLDER), proof(TORN, counts=False)))
    assert good.failed == ()
    assert shown(good) == ["2 checkpoints, 18.8 MiB: every byte is as it was written"]
    bad = Verification(place=PLACE, proofs=(proof(WHOLE), proof(CORRUPT)))
    assert [one.checkpoint.step for one in bad.failed] == [50]
    assert shown(bad)[0].startswith("1 of 2 checkpoints is not whole: ")
    assert len(Verification(place=PLACE, proofs=(proof(TORN),)).failed) == 1


# --- prune ------------------------------------------------------------------------------------

FATES = (
    Fate(checkpoint=WHOLE, stays=True, why="newest"),
    Fate(checkpoint=OLDER, stays=False, why="no rule keeps it"),
    Fate(checkpoint=CORRUPT, stays=False, why="corrupt, and a newer one is whole"),
)


def test_what_would_go_is_told_with_its_reason() -> None:
    lines = shown(Pruning(place=PLACE, fates=FATES, applied=False))
    assert [words(line) for line in lines[3:6]] == [
        "150 2.3456 9.40 MiB 2m 05s keep newest",
        "100 2.3456 9.40 MiB 2h 01m remove no rule keeps it",
        "50 2.3456 9.40 MiB 2h 01m remove corrupt, and a newer one is whole",
    ]
    assert lines[-1] == "would remove 2 checkpoints, 18.8 MiB; apply=true does it"


def test_what_went_is_told() -> None:
    lines = shown(Pruning(place=PLACE, fates=FATES[:2], applied=True))
    assert "removed" in lines[4]
    assert lines[-1] == "removed 1 checkpoint, 9.40 MiB"
    assert shown(Pruning(place=PLACE, fates=FATES[:1], applied=True))[-1] == "nothing to remove"
