"""Replays side by side, as a person reads them."""

from __future__ import annotations

from dataclasses import replace

from tidemill.plan.goodput import GoodputReport, Use
from tidemill.report.replays import tabulate

REAL = GoodputReport(
    source="real",
    duration_s=100,
    node_s={
        Use.useful: 180.0,
        Use.detect: 2.0,
        Use.restart: 8.0,
        Use.recompute: 4.0,
        Use.stall: 1.0,
        Use.idle: 5.0,
    },
    steps=1234,
    redone=12,
    changes={"kill": 2, "grow": 1},
)
SIMULATED = replace(
    REAL,
    source="simulated",
    node_s={**REAL.node_s, Use.useful: 184.0, Use.recompute: 0.0},
    steps=1250,
    redone=0,
    changes={},
)


def cells(reports: list[GoodputReport]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tabulate(reports)]


def test_one_report_is_a_column() -> None:
    assert cells([REAL]) == [
        ["", "real"],
        ["-" * 12, "-" * 25 + ":"],
        ["**useful**", "90.00 %"],
        ["detect", "1.00 %"],
        ["restart", "4.00 %"],
        ["recompute", "2.00 %"],
        ["stall", "0.50 %"],
        ["idle", "2.50 %"],
        ["of", "2.00 machines for 1m 40s"],
        ["steps", "1.23k, 12 again"],
        ["changes", "2 kill, 1 grow"],
    ]


def test_lines_are_of_one_length() -> None:
    assert len({len(line) for line in tabulate([SIMULATED, REAL])}) == 1


def test_two_reports_are_held_against_each_other() -> None:
    rows = cells([SIMULATED, REAL])
    assert [row[3] for row in rows] == [
        "points apart",
        "-" * 13 + ":",
        "+2.00",
        "+0.00",
        "+0.00",
        "-2.00",
        "+0.00",
        "+0.00",
        "",
        "+16",
        "",
    ]
    assert rows[-1][1] == "none"
