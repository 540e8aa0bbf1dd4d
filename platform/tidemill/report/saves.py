"""What checkpoints did for a run and what they cost it: a section of its summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tidemill.report.alarm import gist
from tidemill.report.ledger import RunReport
from tidemill.report.notices import number, one_line, say_cost, say_nodes
from tidemill.report.quantities import count_noun, show_bytes, show_moment
from tidemill.spec.progress import Event

MOST_NAMED = 20
SMALLEST_SHARE = 0.0001
SOURCES = {
    "storage": "from storage",
    "near": "from near memory",
    "memory": "from the memory of workers",
    "fork": "from another run",
    "weights": "with weights alone",
}


def tell_saves(report: RunReport) -> Iterator[str]:
    """Lines of Markdown: what failed, what was saved, what it cost, what was restored.

    Nothing is said of what did not happen.
    """
    if report.failed_saves:
        yield from _failures(report)
    if report.saved:
        total = sum(number(event.fields, "bytes", 0.0) for event in report.saved)
        newest = report.saved[-1].fields
        yield (
            f"{len(report.saved):,} saved, {show_bytes(total)} in all; newest "
            f"{quote(newest.get('name', '?'))} ({say_cost(newest)})"
        )
        yield _stall(report)
    if report.near:
        newest = report.near[-1].fields
        yield (
            f"{count_noun(len(report.near), 'near copy', 'near copies')}; newest of step "
            f"{newest.get('step', '?')} on {say_nodes(newest)} ({say_cost(newest)})"
        )
    for reason, count in _reasons(report.near_refused):
        yield f"{count_noun(count, 'near copy', 'near copies')} refused: {quote(reason)}"
    if report.restored:
        sources = Counter(str(e.fields.get("source", "storage")) for e in report.restored)
        told = ", ".join(
            f"{count:,} {SOURCES.get(source, quote(source))}" for source, count in sources.items()
        )
        yield f"{count_noun(len(report.restored), 'attempt')} restored: {told}"


def name_steps(steps: Sequence[int]) -> str:
    """Numbers of steps, of which the first `MOST_NAMED` are named."""
    more = ", …" if len(steps) > MOST_NAMED else ""
    return ", ".join(str(step) for step in steps[:MOST_NAMED]) + more


def quote(value: object) -> str:
    """Text that came from elsewhere, in one line, so that none of it acts as Markdown."""
    return "`" + one_line(value).replace("`", "'").replace("|", "\\|") + "`"


def _failures(report: RunReport) -> Iterator[str]:
    lost = sorted(step for _, step in _steps(report.failed_saves) - _steps(report.saved))
    if lost:
        yield f"**{count_noun(len(lost), 'checkpoint')} lost**, of step {name_steps(lost)}"
    for reason, count in _reasons(report.failed_saves):
        yield f"{count_noun(count, 'failed try', 'failed tries')}: {quote(reason)}"


def _steps(events: Sequence[Event]) -> set[tuple[int, int]]:
    """(attempt, step) of each event that has a step."""
    steps = ((event.attempt, event.fields.get("step")) for event in events)
    return {(attempt, step) for attempt, step in steps if isinstance(step, int)}


def _reasons(failed: Sequence[Event]) -> list[tuple[str, int]]:
    """Each reason, as it was told last, and how often; the commonest first."""
    reasons = [one_line(event.fields.get("reason", "?")) for event in failed]
    newest = {gist(reason): reason for reason in reasons}
    counts = Counter(gist(reason) for reason in reasons)
    return [(newest[key], count) for key, count in counts.most_common()]


def _stall(report: RunReport) -> str:
    stalls = [stall_of(event) for event in report.saved]
    told = (
        f"training stopped {show_moment(sum(stalls))} for them, {show_moment(max(stalls))} at most"
    )
    if (training_s := report.training_s + report.redone_s) > 0:
        share = sum(stalls) / training_s
        few = f"less than {SMALLEST_SHARE:.2%}" if share < SMALLEST_SHARE else f"{share:.2%}"
        told += f"; {few} of the time spent in steps"
    return told


def stall_of(saved: Event) -> float:
    """Seconds that training stopped for a checkpoint.

    Logs that do not tell are of versions which stopped training until the commit.
    """
    field = "stall_s" if "stall_s" in saved.fields else "seconds"
    return max(number(saved.fields, field, 0.0), 0.0)
