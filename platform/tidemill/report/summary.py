"""The summary of a run: one page of Markdown beside its loss curve, made from its files alone.

It reads `spec.json` and the event log, so it can be written for a run that was killed, from any
machine that sees the storage, and again at any time with the same result.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from tidemill.errors import StorageError
from tidemill.report.events import read_events
from tidemill.report.ledger import AttemptReport, Ending, RunReport, make_run_report
from tidemill.report.notices import number, one_line, say_held_out
from tidemill.report.plots import draw_loss
from tidemill.report.quantities import count_noun, show_bytes, show_count, show_duration, show_loss
from tidemill.storage import Location, exists, publish, read_bytes

SUMMARY = "summary.md"
CURVE = "loss.svg"
MOST_NAMED_STEPS = 20

Plain = Mapping[str, Any]

logger = logging.getLogger(__name__)


def write_summary(run: Location) -> Location:
    """Write `summary.md` and, once there is a step to draw, `loss.svg`.

    Args:
        run: The run's directory.

    Returns:
        Where the summary is.

    Raises:
        StorageError: The run cannot be read or the summary not written.
    """
    report = make_run_report(read_events(run))
    spec = _read_spec(run)
    if report is not None and report.steps:
        drawing = draw_loss(report, name=run.name, caption=_setup(report.attempts[-1].fields, spec))
        publish(run / CURVE, drawing)
    text = "\n".join(_lines(run, spec, report)) + "\n"
    publish(run / SUMMARY, text.encode())
    return run / SUMMARY


def _read_spec(run: Location) -> dict[str, Any]:
    """The run's configuration; empty if it was never written or is no JSON."""
    if not exists(run / "spec.json"):
        return {}
    try:
        return json.loads(read_bytes(run / "spec.json"))
    except (ValueError, StorageError) as error:
        logger.warning("no configuration in the summary of %s: %s", run, error)
        return {}


def _lines(run: Location, spec: Plain, report: RunReport | None) -> Iterator[str]:
    yield f"# {run.name}"
    yield ""
    if report is None:
        yield "Nothing has happened yet: no worker of this run has started."
    else:
        yield _outcome(report, spec)
        yield ""
        yield from _facts(report, spec)
        if report.steps:
            yield from ("", f"![Loss by step]({CURVE})")
        yield from ("", "## Attempts", "")
        yield from _attempts(report)
        yield from _troubles(report)
    yield from ("", "## Commands", "", "```bash")
    yield from _commands(run, spec, report)
    yield "```"
    if spec:
        yield from ("", "<details><summary>Configuration</summary>", "", "```json")
        yield json.dumps(spec, indent=2, sort_keys=True)
        yield from ("```", "", "</details>")


def _outcome(report: RunReport, spec: Plain) -> str:
    newest, of = report.attempts[-1], f" of {spec['steps']}" if "steps" in spec else ""
    match report.ending:
        case Ending.finished:
            return f"**Finished** all {report.last_step} steps."
        case Ending.stopped:
            return f"**Stopped** on request after step {report.last_step}{of}, with a checkpoint."
        case Ending.failed:
            return f"**Failed** after step {report.last_step}{of}: {one_line(newest.error)}"
        case Ending.cut:
            return (
                f"**No last word** after step {report.last_step}{of}: killed, or still going on."
            )


def _facts(report: RunReport, spec: Plain) -> Iterator[str]:
    rows: list[tuple[str, str]] = [("Setup", _setup(report.attempts[-1].fields, spec))]
    batch = spec.get("batch", {})
    if batch:
        rows.append(
            (
                "Batch",
                f"{batch.get('global_size', '?')} samples of {batch.get('sequence', '?')} tokens",
            )
        )
    if report.steps:
        rows.append(("Training loss", show_loss(number(report.steps[-1].fields, "loss"))))
    if report.evaluations:
        held_out = report.evaluations[-1].fields
        rows.append(
            ("Held out", f"{say_held_out(held_out)}, loss {show_loss(number(held_out, 'loss'))}")
        )
    if report.training_s > 0:
        pace = show_count(report.tokens / report.training_s)
        rows.append(("Tokens", f"{show_count(report.tokens)} at {pace} per second"))
    rows.append(("Time", show_duration(report.duration_s)))
    if report.saved:
        last = report.saved[-1].fields
        size = show_bytes(number(last, "bytes"))
        rows.append(("Newest checkpoint", f"`{last.get('name', '?')}`, {size}"))
    yield from ("| | |", "|---|---|")
    for name, value in rows:
        yield f"| {name} | {value} |"


def _setup(fields: Plain, spec: Plain) -> str:
    """Model, strategy, precision and world of an attempt, as far as they are known."""
    known: list[str] = []
    if isinstance(parameters := fields.get("parameters"), int):
        known.append(f"{show_count(parameters)} parameters")
    if "data" in spec:
        known.append(str(spec["data"].get("variant", "")).removesuffix("Spec").lower())
    known += [str(fields[name]) for name in ("strategy", "precision") if name in fields]
    if isinstance(world := fields.get("world"), int):
        known.append(count_noun(world, "worker"))
    if "device" in fields:
        known.append("CPU" if fields["device"] == "cpu" else "GPU")
    return ", ".join(part for part in known if part) or "unknown"


def _attempts(report: RunReport) -> Iterator[str]:
    yield "| # | started (UTC) | workers | from step | to step | tokens/s | ended |"
    yield "|---:|---|---:|---:|---:|---:|---|"
    for attempt in report.attempts:
        started = datetime.fromtimestamp(attempt.started_s, UTC)
        yield (
            f"| {attempt.attempt} | {started:%Y-%m-%d %H:%M:%S} "
            f"| {attempt.fields.get('world', '?')} | {attempt.from_step} | {attempt.to_step} "
            f"| {show_count(attempt.tokens_per_s)} | {_ended(attempt)} |"
        )


def _ended(attempt: AttemptReport) -> str:
    match attempt.ending:
        case Ending.failed:
            return "failed: " + one_line(attempt.error).replace("|", "\\|")
        case Ending.cut:
            return "no last word"
        case ending:
            return ending.value


def _troubles(report: RunReport) -> Iterator[str]:
    told: list[str] = []
    if report.skipped_steps:
        named = ", ".join(str(step) for step in report.skipped_steps[:MOST_NAMED_STEPS])
        more = ", ..." if len(report.skipped_steps) > MOST_NAMED_STEPS else ""
        told.append(
            f"{count_noun(len(report.skipped_steps), 'step')} skipped for gradients that were not "
            f"finite: {named}{more}"
        )
    if report.redone_steps:
        told.append(
            f"{count_noun(report.redone_steps, 'step')} taken again after a restart "
            f"({show_duration(report.redone_s)})"
        )
    told += [
        f"checkpoint `{event.fields.get('name', '?')}` refused: "
        f"{one_line(event.fields.get('reason', '?'))}"
        for event in report.refused
    ]
    if told:
        yield from ("", "## Troubles", "")
        yield from (f"- {line}" for line in told)


def _commands(run: Location, spec: Plain, report: RunReport | None) -> Iterator[str]:
    where = f"run={run.name} storage={spec['storage']}" if "storage" in spec else f"run={run.name}"
    if report is None or report.ending is not Ending.finished:
        yield "# go on: repeat the command that started the run"
    if report is not None and report.saved:
        yield f'python jobs/generate.py {where} "prompt=def "'
        yield f"python jobs/export.py {where} to={run.name}-weights"
