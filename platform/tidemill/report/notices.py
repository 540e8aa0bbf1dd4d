"""What happened, in one line of plain English per event.

A field that is missing or odd costs a question mark, never an exception: whoever watches a run
must not be able to break it, and logs may come from another version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from tidemill.report.quantities import (
    count_noun,
    show_bytes,
    show_count,
    show_duration,
    show_loss,
    show_moment,
)
from tidemill.spec.progress import Event, EventKind

LONGEST_NODE = 12
"""Characters of a node's id that are told: enough to find it among a cluster's."""
MEMORIES = {"near": " in near memory", "memory": " from the memory of its workers"}
CAUSES = {
    "kill": "a worker was lost",
    "error": "a worker failed",
    "hang": "a worker hung",
    "drain": "a machine leaves",
    "grow": "there is room for more",
    "share": "others get their share",
}


def number(fields: Mapping[str, Any], name: str, otherwise: float = math.nan) -> float:
    """The field `name` if it is a number, else `otherwise`."""
    value = fields.get(name)
    return value if isinstance(value, int | float) else otherwise


def say_held_out(fields: Mapping[str, Any]) -> str:
    """The result of an `evaluated`: in bits per byte if it has them, else its loss."""
    if fields.get("bits_per_byte") is not None:
        return f"val {number(fields, 'bits_per_byte'):.3f} bits/byte"
    return f"val loss {show_loss(number(fields, 'loss'))}"


def say_event(event: Event, total_steps: int) -> str:  # noqa: C901, PLR0912 - one arm per kind
    """What happened, for every kind but `step` and `used`.

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
            line = say_restored(fields)
        case EventKind.evaluated:
            line = f"step {step!s:>{len(str(total_steps))}}/{total_steps}  {say_held_out(fields)}"
        case EventKind.checkpoint_saved:
            line = f"saved {name} ({say_cost(fields)})"
        case EventKind.checkpoint_failed:
            line = say_failed_save(fields)
        case EventKind.near_kept:
            nodes = say_nodes(fields)
            line = f"kept step {step} in the memory of {nodes} ({say_cost(fields)})"
        case EventKind.near_refused:
            line = f"no near copy of step {step}: {one_line(fields.get('reason', '?'))}"
        case EventKind.checkpoint_refused:
            line = f"refused checkpoint {name}: {one_line(fields.get('reason', '?'))}"
        case EventKind.notice:
            line = say_notice(fields)
        case EventKind.resizing:
            line = f"step {step} is the last of this group: {say_cause(fields)}"
        case EventKind.rejoined:
            line = say_rejoined(fields)
        case EventKind.straggler:
            line = f"{say_rank(fields)} is slow in {fields.get('what', '?')}: "
            line += f"{number(fields, 'slowdown'):.1f} times as long as the others take"
        case EventKind.hung:
            line = f"{say_rank(fields)} hangs in step {step} ({fields.get('phase', '?')}), "
            line += f"for {show_duration(number(fields, 'after_s'))} so far"
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
        case EventKind.step | EventKind.used:
            line = f"step {step}"
    return line


def say_restored(fields: Mapping[str, Any]) -> str:
    """What an attempt goes on from: `restored step 8 from step-… in near memory, saved by 2 …`."""
    step, held = fields.get("step", "?"), fields.get("checkpoint")
    match fields.get("source"):
        case "weights":
            line = f"starting from the weights in {held}" if held else "starting from weights"
        case "fork":
            line = f"going on from step {step} of {fields.get('run', 'another run')}"
            line += f" ({held})" if held else ""
        case source:
            line = f"restored step {step}"
            line += f" from {held}" if held else ""
            line += MEMORIES.get(str(source), "")
    if isinstance(world := fields.get("saved_world"), int):
        line += f", saved by {count_noun(world, 'worker')}"
    return line


def say_notice(fields: Mapping[str, Any]) -> str:
    """Which nodes are to go, and when: `2 nodes go in 30s: drain (3f2a…, 77b0…)`."""
    nodes = [str(node)[:LONGEST_NODE] for node in as_list(fields.get("nodes"))]
    left_s = number(fields, "deadline_s")
    when = f"in {show_duration(left_s)}" if math.isfinite(left_s) else "at any moment"
    goes = "goes" if len(nodes) == 1 else "go"
    named = f" ({', '.join(nodes)})" if nodes else ""
    reason = one_line(fields.get("reason", "?"))
    return f"{count_noun(len(nodes), 'node')} {goes} {when}: {reason}{named}"


def say_cause(fields: Mapping[str, Any]) -> str:
    """Why a group ended: `a machine leaves`; what this version does not know as it is."""
    cause = one_line(fields.get("cause", "another size"))
    return CAUSES.get(cause, cause)


def say_rejoined(fields: Mapping[str, Any]) -> str:
    """How a new group came about: `going on at step 41 after …: 3 → 2 workers …`."""
    line = f"going on at step {fields.get('step', '?')} with {say_sizes(fields)}: "
    line += f"{say_cause(fields)}; {show_moment(number(fields, 'stall_s'))} without a step"
    redone = fields.get("redone")
    if isinstance(redone, int) and redone:
        line += f", {count_noun(redone, 'step')} taken again"
    return line


def say_sizes(fields: Mapping[str, Any]) -> str:
    """The size of a group before and after: `3 → 2 workers`."""
    before, world = fields.get("before"), fields.get("world")
    told = count_noun(world, "worker") if isinstance(world, int) else "? workers"
    return f"{before} → {told}" if isinstance(before, int) else told


def say_rank(fields: Mapping[str, Any]) -> str:
    """A rank and where it is: `rank 2 on 3f2a…`."""
    node = str(fields.get("node", ""))[:LONGEST_NODE]
    return f"rank {fields.get('rank', '?')}" + (f" on {node}" if node else "")


def say_cost(fields: Mapping[str, Any]) -> str:
    """What a checkpoint took: `9.39 MiB in 0.4s, training stopped 2 ms`."""
    cost = f"{show_bytes(number(fields, 'bytes'))} in {show_moment(number(fields, 'seconds'))}"
    if "stall_s" in fields:
        cost += f", training stopped {show_moment(number(fields, 'stall_s'))}"
    return cost


def say_failed_save(fields: Mapping[str, Any]) -> str:
    """Why a checkpoint was not saved, and whether that is final."""
    step, tries = fields.get("step", "?"), fields.get("tries")
    reason = one_line(fields.get("reason", "?"))
    if math.isfinite(pause_s := number(fields, "retry_in_s")):
        return f"checkpoint of step {step} failed: {reason}; next try in {show_duration(pause_s)}"
    told = f" after {count_noun(tries, 'try', 'tries')}" if isinstance(tries, int) else ""
    return f"NO CHECKPOINT of step {step}: given up{told}: {reason}"


def say_nodes(fields: Mapping[str, Any]) -> str:
    """How many nodes hold a near copy, at least: `2 nodes`."""
    nodes = fields.get("nodes")
    return count_noun(nodes, "node") if isinstance(nodes, int) else "? nodes"


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


def as_list(value: Any) -> list[Any]:
    """A list as it is; of anything else an empty one."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def one_line(value: Any) -> str:
    """Text with its line breaks and runs of spaces made single spaces."""
    return " ".join(str(value).split())
