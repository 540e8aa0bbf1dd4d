"""The summary of a run: one page of Markdown beside its loss curve, made from its files alone.

It reads `spec.json` and the event log, so it can be written for a run that was killed, from any
machine that sees the storage, and again at any time with the same result.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from tidemill.plan.meter import ACCOUNT
from tidemill.report.events import read_events
from tidemill.report.goodput import measure_goodput, say_goodput
from tidemill.report.ledger import AttemptReport, Ending, RunReport, make_run_report
from tidemill.report.notices import number
from tidemill.report.plots import draw_loss
from tidemill.report.quantities import count_noun, show_count, show_duration, show_loss
from tidemill.report.restarts import tell_restarts
from tidemill.report.saves import name_steps, quote, tell_saves
from tidemill.storage import Location, exists, publish, read_bytes

SUMMARY = "summary.md"
CURVE = "loss.svg"
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./:@%+-]+")

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
    spec, account = _read_plain(run / "spec.json"), _read_plain(run / ACCOUNT)
    if report is not None and report.steps:
        publish(run / CURVE, draw_loss(report, name=run.name, caption=_caption(report, spec)))
    text = "\n".join(_page(run, spec, report, account)) + "\n"
    publish(run / SUMMARY, text.encode(errors="backslashreplace"))
    return run / SUMMARY


def _read_plain(place: Location) -> dict[str, Any]:
    """A JSON object of the run's, as written; empty if it never was, or is none."""
    if not exists(place):
        return {}
    try:
        plain: Any = json.loads(read_bytes(place))
    except ValueError as error:
        logger.warning("the summary goes without %s: %s", place, error)
        return {}
    return cast("dict[str, Any]", plain) if isinstance(plain, dict) else {}


def _page(run: Location, spec: Plain, report: RunReport | None, account: Plain) -> Iterator[str]:
    yield f"# {run.name}"
    yield ""
    if report is None:
        yield "Nothing has happened yet: no worker of this run has started."
    else:
        yield _outcome(report, spec)
        if report.steps:
            yield from ("", f"![Loss by step]({CURVE})")
        yield from ("", "| | |", "|---|---|")
        yield from (f"| {name} | {value} |" for name, value in _facts(report, spec, account))
        yield from ("", "## Attempts", "")
        yield from _attempts(report)
        yield from _section("Restarts", tell_restarts(report))
        yield from _listed("Checkpoints", tell_saves(report))
        yield from _listed("Troubles", _troubles(report))
    yield from ("", "## What to do next", "", "```bash")
    yield from _commands(run, spec, report)
    yield "```"
    if report is not None and report.attempts[-1].traceback:
        yield from _folded("Traceback", "text", report.attempts[-1].traceback.rstrip())
    if spec:
        yield from _folded("Configuration", "json", json.dumps(spec, indent=2, ensure_ascii=False))


def _outcome(report: RunReport, spec: Plain) -> str:
    after = f"after step {report.last_step:,}"
    if isinstance(steps := spec.get("steps"), int):
        after += f" of {steps:,}"
    match report.ending:
        case Ending.finished:
            return f"**Finished** all {count_noun(report.last_step, 'step')}."
        case Ending.stopped:
            return f"**Stopped** on request {after}, with a checkpoint."
        case Ending.failed:
            return f"**Failed** {after}: {quote(report.attempts[-1].error)}"
        case Ending.resized:
            return f"**Between two groups of workers** {after}: forming anew, or killed since."
        case Ending.cut:
            return f"**No last word** {after}: killed, or still going on."


def _facts(report: RunReport, spec: Plain, account: Plain) -> Iterator[tuple[str, str]]:
    yield from _setup(report, spec)
    if report.steps:
        last = report.steps[-1].fields
        yield "Training loss", f"{show_loss(number(last, 'loss'))} nats per token"
    if report.evaluations:
        held_out = report.evaluations[-1].fields
        told = f"{show_loss(number(held_out, 'loss'))} nats per token"
        if held_out.get("bits_per_byte") is not None:
            told = f"**{number(held_out, 'bits_per_byte'):.3f} bits per byte**, {told}"
        yield "Held-out loss", f"{told}, at step {held_out['step']:,}"
    if report.training_s > 0:
        pace = show_count(report.tokens / report.training_s)
        yield "Tokens", f"{show_count(report.tokens)} at {pace} per second"
    attempts = count_noun(len(report.attempts), "attempt")
    yield "Time", f"{show_duration(report.duration_s)} in {attempts}"
    if isinstance(spent_usd := account.get("spent_usd"), int | float) and spent_usd:
        most = _part(spec, "budget").get("max_total_usd")
        yield "Cost", f"{spent_usd:,.2f} usd" + (f" of {most:,.2f}" if most else "")
    if report.training_s > 0:
        yield "Goodput", say_goodput(measure_goodput(report))


def _setup(report: RunReport, spec: Plain) -> Iterator[tuple[str, str]]:
    """What ran: what was chosen, and what the newest attempt made of it."""
    fields = report.attempts[-1].fields
    model = _variant(_part(spec, "model"))
    if isinstance(parameters := fields.get("parameters"), int):
        model = f"{model}: {show_count(parameters)} parameters" if model else f"{parameters:,}"
    corpus = f"corpus `{str(fields['corpus'])[:12]}`" if fields.get("corpus") else ""
    batch = _part(spec, "batch")
    samples = (
        f"{batch.get('global_size', '?')} samples of {batch.get('sequence', '?')} tokens"
        if batch
        else ""
    )
    world = count_noun(fields["world"], "worker") if isinstance(fields.get("world"), int) else ""
    rows = (
        ("Model", model),
        ("Data", ", ".join(part for part in (_variant(_part(spec, "data")), corpus) if part)),
        ("Batch", samples),
        ("Strategy", str(fields.get("strategy", ""))),
        ("Precision", str(fields.get("precision", ""))),
        ("World", f"{world} on {fields['device']}" if world and "device" in fields else world),
    )
    yield from ((name, value) for name, value in rows if value)


def _part(spec: Plain, name: str) -> Plain:
    """A group of the configuration; empty if this version cannot make sense of it."""
    part = spec.get(name)
    return cast("Plain", part) if isinstance(part, dict) else {}


def _variant(part: Plain) -> str:
    """The variant of a model or a corpus and its numbers: `gpt (layers 4, heads 4, width 128)`."""
    name = re.sub(r"(Model)?Spec$", "", str(part.get("variant", ""))).lower()
    told = (
        f"{key} {value}"
        for key, value in part.items()
        if key != "variant" and isinstance(value, int | float | str) and value
    )
    inner = ", ".join(told)
    return _cell(f"{name} ({inner})" if inner else name)


def _caption(report: RunReport, spec: Plain) -> str:
    fields = report.attempts[-1].fields
    parameters, world = fields.get("parameters"), fields.get("world")
    parts = (
        f"{show_count(parameters)} parameters" if isinstance(parameters, int) else "",
        str(fields.get("strategy", "")),
        str(fields.get("precision", "")),
        count_noun(world, "worker") if isinstance(world, int) else "",
        f"{report.last_step:,} of {spec['steps']:,} steps"
        if isinstance(spec.get("steps"), int)
        else count_noun(report.last_step, "step"),
        f"{show_count(report.tokens)} tokens",
    )
    return "  ·  ".join(part for part in parts if part)


def _attempts(report: RunReport) -> Iterator[str]:
    heads = "# | started (UTC) | lasted | workers | from step | source | to step | tokens/s | ended"
    yield f"| {heads} |"
    yield "|---:|---|---:|---:|---:|---|---:|---:|---|"
    for attempt in report.attempts:
        started = datetime.fromtimestamp(attempt.started_s, UTC)
        yield (
            f"| {attempt.attempt} | {started:%Y-%m-%d %H:%M:%S} "
            f"| {show_duration(attempt.ended_s - attempt.started_s)} "
            f"| {attempt.fields.get('world', '?')} "
            f"| {attempt.from_step:,} | {_cell(attempt.source)} | {attempt.to_step:,} "
            f"| {show_count(attempt.tokens_per_s) if attempt.tokens_per_s else ''} "
            f"| {_ended(attempt, newest=attempt is report.attempts[-1])} |"
        )


def _ended(attempt: AttemptReport, *, newest: bool) -> str:
    match attempt.ending:
        case Ending.failed:
            return f"failed: {quote(attempt.error)}"
        case Ending.resized:
            return "workers changed"
        case Ending.cut:
            return "no last word: killed, or still going on" if newest else "killed or lost"
        case ending:
            return ending.value


def _troubles(report: RunReport) -> Iterator[str]:
    if skipped := report.skipped_steps:
        yield (
            f"{count_noun(len(skipped), 'step')} skipped because gradients were not finite: "
            f"{name_steps(skipped)}"
        )
    if report.redone_steps:
        yield (
            f"{count_noun(report.redone_steps, 'step')} ({show_duration(report.redone_s)}) lost to "
            "restarts: taken after the checkpoint that a later attempt went on from"
        )
    for event in report.refused:
        yield (
            f"checkpoint {quote(event.fields.get('name', '?'))} refused by attempt "
            f"{event.attempt}: {quote(event.fields.get('reason', '?'))}"
        )


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    """A section of bullets; nothing if there are none."""
    yield from _section(title, (f"- {line}" for line in lines))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """A section; nothing if there is nothing in it."""
    if told := list(lines):
        yield from ("", f"## {title}", "", *told)


def _commands(run: Location, spec: Plain, report: RunReport | None) -> Iterator[str]:
    place = [_override("run", run.name)]
    if "storage" in spec:
        place.append(_override("storage", spec["storage"]))
    where = " ".join(place)
    if report is None or report.ending is not Ending.finished:
        yield "# go on: repeat the command that started the run, with resume=must to be sure"
    else:
        yield "# more steps: repeat the command that started the run; it says which keys to add"
    if report is not None and report.saved:
        if _part(spec, "data").get("variant") == "TextSpec":
            yield f"python jobs/generate.py {where} {_override('prompt', 'def ')}"
        yield f"python jobs/export.py {where} {_override('to', f'{run.name}-weights')}"


def _override(key: str, value: Any) -> str:
    """`key=value` for a shell and, within it, for Hydra, quoted where either would misread it."""
    text = str(value)
    if PLAIN_VALUE.fullmatch(text):
        return f"{key}={text}"
    escaped = text.replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')


def _folded(title: str, language: str, text: str) -> Iterator[str]:
    """A block that opens on a click; its fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    yield from ("", f"<details><summary>{title}</summary>", "", f"{fence}{language}", text, fence)
    yield from ("", "</details>")


def _cell(text: str) -> str:
    """Text that does not end the cell of a table."""
    return text.replace("|", "\\|")
