"""What an audit found is one page: epochs, flaws, verdict."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from tidemill.report.audit import Audit, EpochRow, say_flaw
from tidemill.report.desk import Desk
from tidemill.report.history import Flaw

SIZE = 12_800
FIRST = EpochRow(
    first=0, last=0, samples=SIZE, proven=SIZE, whole=True, first_step=0, last_step=399
)
CURRENT = replace(
    FIRST, first=1, last=1, samples=4000, proven=4000, whole=False, first_step=400, last_step=524
)
FLAW = Flaw(first=17, last=17, attempt=2, problem="used other samples than the order gives it")
CLEAN = Audit(
    place="/home/you/runs/hello",
    clean=True,
    steps=525,
    first_step=0,
    origin="",
    samples=16_800,
    epoch_samples=SIZE,
    attempts=4,
    taken_back=12,
    epochs=(FIRST, CURRENT),
    flaws=(),
)


def shown(page: Audit, width: int = 80) -> list[str]:
    """The lines of a page, with single spaces."""
    out = io.StringIO()
    Desk(as_json=False, console=Console(file=out, width=width)).answer(page)
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    return [line for line in lines if line.strip("─ ")]


def test_a_clean_run() -> None:
    verdict = "clean: every sample of 1 epoch was used exactly once; 4,000 samples of an unfinished"
    assert shown(CLEAN, 120) == [
        "/home/you/runs/hello: 525 steps in 4 attempts, 16,800 samples",
        "12 steps besides, taken back by restarts",
        "epoch used once of steps",
        "0 12,800 12,800 0–399 every sample once",
        "1 4,000 12,800 400–524 none twice, so far",
        f"{verdict} one so far, none twice",
    ]


def test_a_run_that_is_not_clean_names_what_is_wrong() -> None:
    page = replace(
        CLEAN, clean=False, epochs=(replace(FIRST, proven=SIZE - 32), CURRENT), flaws=(FLAW, FLAW)
    )
    lines = shown(page, 120)
    assert "0 12,768 12,800 0–399 WRONG" in lines
    assert lines.count("step 17 of attempt 2: used other samples than the order gives it") == 2
    assert lines[-1] == (
        "not clean: step 17 of attempt 2: used other samples than the order gives it"
    )


def test_of_many_flaws_the_first_are_named_and_the_rest_counted() -> None:
    page = replace(CLEAN, clean=False, flaws=(FLAW,) * 25)
    lines = shown(page, 120)
    assert sum(line.startswith("step 17") for line in lines) == 10
    assert "and 15 more; format=json names all" in lines


def test_of_many_epochs_the_first_and_the_newest_are_shown() -> None:
    rows = tuple(replace(FIRST, first=n, last=n) for n in range(100))
    lines = shown(replace(CLEAN, epochs=rows), 120)
    told = [line.split()[0] for line in lines if "every sample once" in line or line == "…"]
    assert told == [*map(str, range(18)), "…", "98", "99"]


def test_epochs_that_are_alike_are_a_row() -> None:
    many = replace(FIRST, last=1999, samples=2000 * SIZE, proven=2000 * SIZE, last_step=799_999)
    lines = shown(replace(CLEAN, epochs=(many,)), 120)
    assert "0–1,999 25,600,000 25,600,000 0–799,999 every sample once" in lines
    assert lines[-1] == "clean: every sample of 2,000 epochs was used exactly once"


def test_a_run_that_has_used_nothing_or_little() -> None:
    empty = replace(CLEAN, epochs=(), steps=0, samples=0, attempts=1, taken_back=0)
    assert shown(empty) == [
        "/home/you/runs/hello: 0 steps in 1 attempt, 0 samples",
        "nothing to prove yet: no step was taken",
    ]
    young = replace(CLEAN, epochs=(replace(CURRENT, first=0, last=0),))
    assert shown(young)[-1] == "clean: 4,000 samples of an unfinished epoch so far, none twice"


def test_where_a_run_goes_on_from() -> None:
    forked = replace(CLEAN, first_step=400, origin="base", epochs=(CURRENT,))
    assert shown(forked)[1] == "goes on from step 400 of base"
    assert shown(replace(CLEAN, origin="s3://weights"))[1] == "goes on from s3://weights"


def test_flaws_in_words() -> None:
    assert say_flaw(replace(FLAW, attempt=0, last=2000, problem="in no log")) == (
        "steps 17–2,000: in no log"
    )
