"""An answer goes to standard output in one form; progress never gets into it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from tests.report.screen import Screen
from tests.report.test_pages import CORRUPT, OLDER, PLACE, WHOLE, proof
from tests.report.test_sheets import OTHER
from tidemill.report.desk import Desk
from tidemill.report.inventory import Inventory, Verification

if TYPE_CHECKING:
    import pytest

PAGE = Inventory(place=PLACE, newest=WHOLE.name, checkpoints=(WHOLE, OLDER))


def answered(page: object, *, as_json: bool) -> str:
    out = io.StringIO()
    Desk(as_json=as_json, console=Console(file=out, width=80)).answer(page)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def test_text_is_a_page() -> None:
    assert "2 checkpoints, 18.8 MiB" in answered(PAGE, as_json=False)


def test_json_is_one_value_with_every_field() -> None:
    plain = json.loads(answered(PAGE, as_json=True))
    assert (plain["place"], plain["newest"]) == (PLACE, WHOLE.name)
    assert [row["step"] for row in plain["checkpoints"]] == [150, 100]
    assert plain["checkpoints"][0] == plain["checkpoints"][0] | {
        "name": WHOLE.name,
        "loss": 2.34561,
        "origin": {},
    }


def test_json_is_not_wrapped_or_marked_up() -> None:
    odd = replace(WHOLE, problem="[bold]" + 200 * "x", origin={"weights": "/a/[b]/ü"})
    plain = json.loads(answered(replace(PAGE, checkpoints=(odd,)), as_json=True))
    (row,) = plain["checkpoints"]
    assert (row["problem"], row["origin"]) == (odd.problem, odd.origin)


def test_what_is_not_finite_is_null_in_json() -> None:
    worst = json.loads(answered(OTHER, as_json=True))["worst"]
    assert [change["largest"] for change in worst] == [0.5, None]


def test_each_proof_is_said_at_once_unless_json_is_to_be_one_value() -> None:
    out = io.StringIO()
    for as_json in (False, True):
        Desk(as_json=as_json, console=Console(file=out, width=80)).say(proof(CORRUPT))
    assert out.getvalue() == "step-0000000100-a0001  corrupt  rank-00000.bin is missing\n"
    proofs = (proof(WHOLE), proof(CORRUPT))
    plain = json.loads(answered(Verification(place=PLACE, proofs=proofs), as_json=True))
    assert [one["checkpoint"]["state"] for one in plain["proofs"]] == ["whole", "corrupt"]


def test_progress_is_shown_on_a_terminal_and_taken_away() -> None:
    out, screen = io.StringIO(), Screen()
    desk = Desk(
        as_json=False,
        console=Console(file=out, width=80),
        progress=Console(file=screen, force_terminal=True, width=80, legacy_windows=False),
    )
    with desk.reading("reading", 2**20) as advance:
        advance(2**19)
    assert any("reading" in line for frame in screen.frames for line in frame)
    assert screen.shown == []
    assert screen.cursor_shown
    assert out.getvalue() == ""


def test_what_is_said_amid_progress_stands_above_it() -> None:
    screen = Screen()
    terminal = Console(file=screen, force_terminal=True, width=80, legacy_windows=False)
    desk = Desk(as_json=False, console=terminal)
    with desk.reading("reading", 2**20) as advance:
        advance(2**19)
        desk.say(proof(CORRUPT))
        advance(2**19)
    assert screen.shown == ["step-0000000100-a0001  corrupt  rank-00000.bin is missing"]
    assert any(" of 1.00 MiB" in line for frame in screen.frames for line in frame)


def test_progress_is_not_shown_to_a_file() -> None:
    errors = io.StringIO()
    with Desk(as_json=False, progress=Console(file=errors)).reading("reading", 9) as advance:
        advance(9)
    assert errors.getvalue() == ""


def test_a_path_is_never_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = replace(PAGE, place="/" + 100 * "x")
    Desk(as_json=False).answer(long)
    assert capsys.readouterr().out.startswith(f"{long.place}: 2 checkpoints, 18.8 MiB\n")


def test_a_pipe_has_room_for_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = replace(WHOLE, step=10**9, loss=1e9, val_loss=1e9)
    Desk(as_json=False).answer(replace(PAGE, checkpoints=(wide,)))
    assert "2 × deepspeed_z2 bf16" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    Desk(as_json=False).answer(replace(PAGE, checkpoints=(wide,)))
    assert "2 × deepspeed_z2 bf16" not in capsys.readouterr().out
