"""Replays as people read them: where the machines' time went, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidemill.plan.goodput import LOSSES, GoodputReport, Use
from tidemill.report.quantities import show_count, show_duration


def tabulate(reports: Sequence[GoodputReport]) -> list[str]:
    """A table, of Markdown and for a terminal alike; of two reports also their difference."""
    rows = [[""], ["**useful**"], *([use.value] for use in LOSSES), ["of"], ["steps"], ["changes"]]
    for report in reports:
        shares = [f"{100 * report.share(use):.2f} %" for use in (Use.useful, *LOSSES)]
        _add(rows, [report.source, *shares, *_counts(report)])
    if len(reports) == 2:  # noqa: PLR2004 - one simulated, one real
        first, second = reports
        points = [
            f"{100 * (first.share(use) - second.share(use)):+.2f}" for use in (Use.useful, *LOSSES)
        ]
        _add(rows, ["points apart", *points, "", f"{first.steps - second.steps:+,}", ""])
    return list(_drawn(rows))


def _counts(report: GoodputReport) -> list[str]:
    machines = report.total_s / report.duration_s if report.duration_s else 0.0
    steps = show_count(report.steps)
    if report.redone:
        steps += f", {show_count(report.redone)} again"
    changes = [f"{report.changes[cause]} {cause}" for cause in report.changes]
    return [
        f"{machines:.2f} machines for {show_duration(report.duration_s)}",
        steps,
        ", ".join(changes) or "none",
    ]


def _add(rows: list[list[str]], column: Sequence[str]) -> None:
    for row, cell in zip(rows, column, strict=True):
        row.append(cell)


def _drawn(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for number, row in enumerate(rows):
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join([first, *(cell.strip().rjust(len(cell)) for cell in others)])} |"
        if number == 0:
            rules = ["-" * (widths[0] + 2), *(f"{'-' * (width + 1)}:" for width in widths[1:])]
            yield f"|{'|'.join(rules)}|"
