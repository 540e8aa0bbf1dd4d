"""Every change of a run's workers and what it cost, stage by stage: a section of its summary."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator

from tidemill.report.ledger import RunReport
from tidemill.report.notices import number, say_cause, say_event
from tidemill.report.quantities import count_noun, show_moment
from tidemill.report.saves import quote
from tidemill.spec.progress import Event

MOST_TOLD = 50
STAGES = ("detect", "stop", "decide", "place", "spawn", "join", "load", "first_step")
"""Of a change, in their order; `place` waits for machines."""


def tell_restarts(report: RunReport) -> Iterator[str]:
    """Lines of Markdown: what changes there were, the time line of each, and what announced them.

    Nothing if nothing changed.
    """
    if report.rejoined:
        yield f"- {_overview(report.rejoined)}"
        yield ""
        yield from _timeline(report.rejoined)
    if report.signs:
        yield from ("",) if report.rejoined else ()
        if hidden := len(report.signs) - MOST_TOLD:
            yield from [f"- {count_noun(hidden, 'earlier notice')} left out"] if hidden > 0 else []
        for event in report.signs[-MOST_TOLD:]:
            yield f"- attempt {event.attempt}: {quote(say_event(event, 0))}"


def _overview(rejoined: tuple[Event, ...]) -> str:
    """`3 changes of the workers: 2 because a worker was lost, …; 1.4s without a step …`."""
    causes = Counter(say_cause(event.fields) for event in rejoined)
    told = ", ".join(f"{count:,} because {cause}" for cause, count in causes.most_common())
    line = f"{count_noun(len(rejoined), 'change')} of the workers: {told}"
    stalls = [number(event.fields, "stall_s") for event in rejoined]
    if known := [stall for stall in stalls if math.isfinite(stall)]:
        line += f"; {show_moment(statistics.median(known))} without a step at the median, "
        line += f"{show_moment(max(known))} at most"
    return line + (f"; the newest {MOST_TOLD} are" if len(rejoined) > MOST_TOLD else "")


def _timeline(rejoined: tuple[Event, ...]) -> Iterator[str]:
    heads = ["attempt", "step", "cause", "workers", "kept", "fresh"]
    heads += [stage.replace("_", " ") for stage in STAGES]
    heads += ["without a step", "taken again"]
    yield f"| {' | '.join(heads)} |"
    yield "|---:|---:|---|---|" + "---:|" * (len(heads) - 4)
    for event in rejoined[-MOST_TOLD:]:
        fields = event.fields
        sizes = [_count(fields.get(name)) for name in ("before", "world")]
        cells = [
            str(event.attempt),
            _count(fields.get("step")),
            quote(fields.get("cause", "?")).strip("`"),
            " → ".join(size for size in sizes if size),
            *(_count(fields.get(name)) for name in ("kept", "fresh")),
            *(_moment(number(fields, f"{stage}_s")) for stage in (*STAGES, "stall")),
            _count(fields.get("redone")),
        ]
        yield f"| {' | '.join(cells)} |"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _moment(seconds: float) -> str:
    return show_moment(seconds) if math.isfinite(seconds) else ""
