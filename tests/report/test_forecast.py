"""The page of a plan says on any terminal, in Markdown and in JSON what the plan found."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tidemill.report.desk import Desk
from tidemill.report.forecast import ChoiceRow, GpuRow, PlanPage, WorldRow, plan_markdown
from tidemill.report.market import RefusalRow

PAGE = PlanPage(
    name="mill",
    facts={"model": "124M parameters", "limits": "max_total_usd=50"},
    worlds=(
        WorldRow(
            workers=8,
            samples=64,
            micro_batches=4,
            micro_size=16,
            need_gib=17.2,
            need_terms_gib={"weights": 0.4, "logits": 9.2, "activations": 5.4, "masters": 0.01},
            moment="micro-batch",
        ),
    ),
    gpus=(
        GpuRow(
            gpu="L4",
            memory_gib=24,
            fits_from=8,
            workers=8,
            step_s=1.35,
            low_s=0.05,
            high_s=3.29,
            tokens_per_s=388_000,
            hours=7.1,
            remedy="",
        ),
        GpuRow(
            gpu="RTX-5080",
            memory_gib=16,
            fits_from=None,
            workers=8,
            step_s=None,
            low_s=None,
            high_s=None,
            tokens_per_s=None,
            hours=None,
            remedy="batch.micro_size=8",
        ),
    ),
    choices=(
        ChoiceRow(
            machines="1 x lambda:box",
            workers=8,
            usd_per_hour=3.0,
            hours=2.0,
            low_hours=1.5,
            high_hours=4.0,
            usd=6.61,
            terms_usd={"gpus": 6.0, "disk": 0.0, "transfer_out": 0.61},
            losses=0.25,
            why="",
        ),
        ChoiceRow(
            machines="8 x vast:one",
            workers=8,
            usd_per_hour=5.0,
            hours=3.0,
            low_hours=2.0,
            high_hours=5.0,
            usd=15.02,
            terms_usd={"gpus": 15.02},
            losses=1.5,
            why="+$8.41: gpus +$9.02",
        ),
    ),
    more=7,
    decision="as of now: waits",
    refused=(RefusalRow(subject="a", reason="none left", remedy=""),) * 3,
    skipped=(RefusalRow(subject="vast", reason="no key", remedy="export VAST_API_KEY"),),
    notes=("prices: old",),
    commands=("# rent", "ray start --head", "python jobs/train.py " + "a.very.long.key=1 " * 20),
)
SAID = (
    *("124M parameters", "max_total_usd=50", "17.2 GiB", "logits 9.2, activations 5.4"),
    *("1.35 s", "50 ms–3.29 s", "388k", "no, with batch.micro_size=8"),
    *("$6.61", "$15.02", "2h 00m", "1h 30m–4h 00m", "0.25", "+$8.41: gpus +$9.02"),
    *("top=9", "transfer out", "$0.61", "as of now: waits", "prices: old", "export VAST_API_KEY"),
    *("3: none left", "ray start --head", "a.very.long.key=1 " * 19),
)


def shown(page: PlanPage, width: int = 160, *, as_json: bool = False) -> str:
    file = io.StringIO()
    Desk(as_json=as_json, console=Console(file=file, width=width)).answer(page)
    return file.getvalue()


@pytest.mark.parametrize("said", SAID)
def test_all_of_it_is_on_the_page_and_in_the_file(said: str) -> None:
    assert said in shown(PAGE)
    assert said in plan_markdown(PAGE)


def test_a_narrow_terminal_folds_but_does_not_cut() -> None:
    narrow = shown(PAGE, 80)
    for said in ("$6.61", "$15.02", "$0.61", "a.very.long.key=1 " * 19, "7h 06m"):
        assert said in narrow
    table = [line for line in narrow.splitlines() if "very.long" not in line]
    assert max(map(len, table)) <= 80


def test_however_long_names_are_no_figure_is_cut() -> None:
    long = replace(
        PAGE.choices[1],
        machines="128 x provider-with-a-name:an-instance-type-of-forty-characters@region-1 spot",
        usd=1_234_567.89,
        terms_usd={"gpus": 1_234_567.89},
        usd_per_hour=12_345.67,
        high_hours=9_999.0,
        why="+$1,234,561.28: gpus +$1,234,561.89, transfer out -$0.61",
    )
    page = replace(PAGE, choices=(long, *PAGE.choices))
    for width in (64, 80, 120, 240):
        text = shown(page, width)
        table = [line for line in text.splitlines() if "very.long" not in line]
        assert max(map(len, table)) <= width
        for said in ("$1,234,567.89", "12,345.67", "$6.61", "$15.02", *PAGE.commands):
            assert said in text


def test_what_is_no_number_is_null_for_programs() -> None:
    endless = replace(PAGE.choices[0], high_hours=float("inf"))
    plain = json.loads(shown(replace(PAGE, choices=(endless,)), as_json=True))
    assert plain["choices"][0]["high_hours"] is None


def test_programs_get_all_of_it() -> None:
    plain = json.loads(shown(PAGE, 40, as_json=True))
    assert plain == json.loads(json.dumps(dataclasses.asdict(PAGE)))
    assert plain["choices"][0]["terms_usd"]["transfer_out"] == 0.61
    assert plain["gpus"][1]["fits_from"] is None
    assert len(plain["refused"]) == 3


def test_each_table_of_the_file_has_one_row_that_parts() -> None:
    lines = plan_markdown(PAGE).splitlines()
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    tables = [table.strip().splitlines() for table in tables if table.strip()]
    assert len(tables) == 5
    for table in tables:
        assert set(table[1]) <= set("|-: ")
        assert len({row.count("|") for row in table}) == 1


def test_where_there_is_nothing_nothing_is_said_of_it() -> None:
    empty = replace(PAGE, choices=(), gpus=(), refused=(), skipped=(), commands=(), decision="")
    text = shown(empty)
    assert "no machines for it" in text
    for head in ("bill", "deadline", "refused", "to run it", "GPUs,"):
        assert head not in text.replace("GPU memory", "")
