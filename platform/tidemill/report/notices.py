"""What happened, in one line of plain English per event.

A field that is missing or odd costs a question mark, never an exception: whoever watches a run
must not be able to break it, and logs may come from another version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tidemill.report.quantities import (
    count_noun,
    show_bytes,
    show_count,
    show_duration,
    show_loss,
)
from tidemill.spec.progress import Event, EventKind


def number(fields: Mapping[str, Any], name: str, otherwise: float = math.nan) -> float:
    """The field `name` if it is a number, else `otherwise`."""
    value = fields.get(name)
    return value if isinstance(value, int | float) else otherwise


def say_held_out(fields: Mapping[str, Any]) -> str:
    """The result of an `evaluated`: in bits per byte if it has them, else its loss."""
    if fields.get("bits_per_byte") is not None:
        return f"val {number(fields, 'bits_per_byte'):.3f} bits/byte"
    return f"val loss {show_loss(number(fields, 'loss'))}"


def say_event(event: Event, total_steps: int) -> str:  # noqa: C901 - one arm per kind
    """What happened, for every kind but `step`.

    Args:
        event: The event.
        total_steps: Optimizer steps of the whole run.
    """
    fields = event.fields
    step = fields.get("step", "?")
    name = fields.get("name", "?")
    match event.kind:
        case EventKind.attempt_started:
            line = f"attempt {event.attempt}: {say_setup(fields)}"
        case EventKind.restored:
            line = f"restored step {step}"
            if "checkpoint" in fields:
                line += f" from {fields['checkpoint']}"
            if isinstance(world := fields.get("saved_world"), int):
                line += f", saved by {count_noun(world, 'worker')}"
        case EventKind.evaluated:
            line = f"step {step!s:>{len(str(total_steps))}}/{total_steps}  {say_held_out(fields)}"
        case EventKind.checkpoint_saved:
            size = show_bytes(number(fields, "bytes"))
            line = f"saved {name} ({size} in {show_duration(number(fields, 'seconds'))})"
        case EventKind.checkpoint_refused:
            line = f"refused checkpoint {name}: {one_line(fields.get('reason', '?'))}"
        case EventKind.stop_requested:
            line = f"asked to stop at step {step}: saving a checkpoint first"
        case EventKind.stopped:
            line = f"stopped at step {step}/{total_steps}: the same command goes on from there"
        case EventKind.finished:
            loss = show_loss(number(fields, "loss"))
            seconds = show_duration(number(fields, "seconds"))
            line = f"finished {step} steps in {seconds}, loss {loss}"
        case EventKind.failed:
            line = f"rank {fields.get('rank', '?')} failed: {one_line(fields.get('error', '?'))}"
        case EventKind.step:
            line = f"step {step}"
    return line


def say_setup(fields: Mapping[str, Any]) -> str:
    """What an attempt runs as: `2 workers, fsdp2, bf16, 1.20M parameters, cpu`."""
    world, parameters = fields.get("world"), number(fields, "parameters")
    facts = (
        count_noun(world, "worker") if isinstance(world, int) else "",
        str(fields.get("strategy", "")),
        str(fields.get("precision", "")),
        f"{show_count(parameters)} parameters" if math.isfinite(parameters) else "",
        str(fields.get("device", "")),
    )
    return ", ".join(fact for fact in facts if fact)


def one_line(value: Any) -> str:
    """Text with its line breaks and runs of spaces made single spaces."""
    return " ".join(str(value).split())
