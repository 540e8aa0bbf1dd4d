"""A run as it goes: a progress bar on a terminal, plain lines anywhere else.

All timing comes from the events themselves and nothing is drawn but by `feed`, so there is no
thread to flicker or to outlive the run, and the same events always give the same lines.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from tidemill.report.alarm import Alarm
from tidemill.report.ledger import STEPS, steps_taken
from tidemill.report.notices import number, say_held_out, say_nodes
from tidemill.report.quantities import count_noun, show_count, show_duration, show_loss
from tidemill.spec.progress import Event, EventKind

SMOOTHING_S = 20.0
REDRAW_S = 0.1
SHORTEST_BAR = 12
LINE_EVERY_S = (5.0, 60.0)
LINE_PER_ELAPSED = 0.05
LINES_PER_RUN = 10

_STYLES = {
    EventKind.checkpoint_failed: "bold red",
    EventKind.near_refused: "yellow",
    EventKind.checkpoint_refused: "yellow",
    EventKind.notice: "yellow",
    EventKind.straggler: "yellow",
    EventKind.hung: "bold red",
    EventKind.resizing: "dim",
    EventKind.rejoined: "cyan",
    EventKind.stop_requested: "yellow",
    EventKind.stopped: "yellow",
    EventKind.finished: "green",
    EventKind.failed: "bold red",
    EventKind.attempt_started: "dim",
}
_LAST_WORDS = {EventKind.finished, EventKind.stopped, EventKind.failed}
_COUNTED = {*STEPS, EventKind.restored}
_PLAIN_ONLY = {EventKind.evaluated, EventKind.checkpoint_saved}


class LiveView:
    """Shows the events it is fed; a context manager that closes itself.

    On a terminal: a bar that vanishes on `close`, with one-line notices above it. Elsewhere: a line
    for the first step of an attempt, then one every 5 s (ever fewer, down to one a minute) and at
    every tenth of the run, and one for everything that is not a step.

    Args:
        total_steps: Optimizer steps of the whole run.
        console: Where to show them; standard error by default, so that output can be piped.
    """

    def __init__(self, total_steps: int, *, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._alarm = Alarm()
        self._status = _Status(total_steps)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar = _Bar(self._console, total_steps) if terminal else None
        self._cadence = _Cadence(total_steps)
        self._said_last_words = True

    def feed(self, events: Sequence[Event]) -> None:
        """Show what is new; cheap, and worth calling with nothing to keep the bar in shape.

        Args:
            events: New events, oldest first, as `EventTail.poll` gives them.
        """
        for event in events:
            if event.kind in _COUNTED and not isinstance(event.fields.get("step"), int):
                continue
            if "late" in event.fields:  # what it tells of was over before this attempt began
                continue
            self._status.take(event)
            self._said_last_words = event.kind in _LAST_WORDS
            if event.kind not in STEPS:
                self._notice(event)
            elif self._bar is None and event.kind is EventKind.step and self._cadence.due(event):
                self._say_status()
        if self._bar is not None:
            self._bar.show(self._status, self._alarm.sign, moved=bool(events))

    def say(self, line: str) -> None:
        """Show one line that is not about an event, above the bar if there is one."""
        self._say(line)

    def close(self) -> None:
        """Take the bar away; if the run has not said how it ended, say where it was."""
        if self._bar is not None:
            self._bar.stop()
            if not self._said_last_words:
                self._say_status()
        self._said_last_words = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _notice(self, event: Event) -> None:
        recovered = self._alarm.raised and event.kind is EventKind.checkpoint_saved
        line = self._alarm.hear(event, self._status.total)
        if line and (self._bar is None or recovered or event.kind not in _PLAIN_ONLY):
            self._say(line, "green" if recovered else _STYLES.get(event.kind, ""))

    def _say_status(self) -> None:
        head, *parts = self._status.parts()
        self._say("  ".join(part for part in (head, self._alarm.sign, *parts) if part))

    def _say(self, line: str, style: str = "") -> None:
        """Print one line above the bar, as it is: no markup, no wrapping, no highlighting."""
        self._console.print(Text(line, style=style), soft_wrap=True, highlight=False)


class _Status:
    """What the newest events say, smoothed where they are noisy."""

    def __init__(self, total_steps: int) -> None:
        self.total = total_steps
        self.done = 0
        self._world = 0
        self._loss: float | None = None
        self._held_out = self._near = ""
        self._rate = _Ratio()
        self._pace = _Ratio()
        self._last: Event | None = None

    def take(self, event: Event) -> None:
        fields = event.fields
        match event.kind:
            case EventKind.attempt_started:
                world = fields.get("world")
                self._world = world if isinstance(world, int) else 0
                self._rate, self._pace, self._last = _Ratio(), _Ratio(), None
                self._near = ""
            case EventKind.step:
                self._take_step(event)
            case EventKind.evaluated:
                self._held_out = say_held_out(fields)
            case EventKind.near_kept:
                self._near = f"near {event.fields.get('step', '?')}"
                if event.fields.get("nodes") == 1:
                    self._near += f" on {say_nodes(event.fields)}"
            case EventKind.restored | EventKind.used:
                self.done = steps_taken(event)
            case _:
                pass

    def _take_step(self, event: Event) -> None:
        seconds = number(event.fields, "seconds", 0.0)
        self._loss = number(event.fields, "loss")
        self._rate.add(number(event.fields, "tokens", 0.0), seconds, seconds)
        if self._last is None:
            self._pace.add(seconds, 1, seconds)
        else:
            passed_s = max(event.at_s - self._last.at_s, 0.0)
            self._pace.add(passed_s, steps_taken(event) - steps_taken(self._last), passed_s)
        self._last = event
        self.done = steps_taken(event)

    def head(self) -> str:
        return f"step {self.done:>{len(str(self.total))}}/{self.total}"

    def parts(self) -> list[str]:
        """Head, loss, held-out loss, rate, world, near copy, time to go: those that are known."""
        return [self.head(), *(part for _, part in self.ranked())]

    def ranked(self) -> list[tuple[int, str]]:
        """The parts after the head, each with its rank: the highest goes first in a small space."""
        to_go = self.total - self.done
        parts = [
            (0, f"loss {show_loss(self._loss)}" if self._loss is not None else ""),
            (3, self._held_out),
            (2, f"{show_count(self._rate.value)} tok/s" if self._rate.value > 0 else ""),
            (4, count_noun(self._world, "worker") if self._world else ""),
            (5, self._near),
            (1, f"eta {show_duration(to_go * self._pace.value)}" if to_go and self._last else ""),
        ]
        return [(rank, part) for rank, part in parts if part]


class _Ratio:
    """A ratio of two sums that forgets with time."""

    def __init__(self) -> None:
        self._above = 0.0
        self._below = 0.0

    @property
    def value(self) -> float:
        return self._above / self._below if self._below > 0 else 0.0

    def add(self, above: float, below: float, passed_s: float) -> None:
        kept = math.exp(-passed_s / SMOOTHING_S)
        self._above = self._above * kept + above
        self._below = self._below * kept + below


class _Bar:
    """One line at the bottom of a terminal, drawn at most ten times a second."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[rest]}", markup=False),
            console=console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps, rest="starting")
        self._drawn_s = -math.inf
        self._stale = False

    def show(self, status: _Status, alarm: str, *, moved: bool) -> None:
        self._stale = self._stale or moved
        now_s = time.monotonic()
        if not self._stale or now_s - self._drawn_s < REDRAW_S:
            return
        self._progress.start()
        head = status.head()
        room = self._console.width - len(head) - SHORTEST_BAR - 2
        self._progress.update(
            self._task,
            description=f"{head} [red]{alarm}[/red]" if alarm else head,
            completed=min(status.done, status.total),
            rest=_fit(status.ranked(), room - len(alarm) - 1 if alarm else room),
        )
        self._progress.refresh()
        self._drawn_s, self._stale = now_s, False

    def stop(self) -> None:
        self._progress.stop()


class _Cadence:
    """Whether a step deserves a line."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._attempt = 0
        self._began_s = 0.0
        self._said_s = 0.0
        self._said_share: int = 0

    def due(self, event: Event) -> bool:
        share: int = steps_taken(event) * LINES_PER_RUN // self._total
        if event.attempt != self._attempt:
            self._attempt, self._began_s = event.attempt, event.at_s
        else:
            shortest_s, longest_s = LINE_EVERY_S
            wait_s = (event.at_s - self._began_s) * LINE_PER_ELAPSED
            wait_s = min(max(wait_s, shortest_s), longest_s)
            if event.at_s - self._said_s < wait_s and share == self._said_share:
                return False
        self._said_s, self._said_share = event.at_s, share
        return True


def _fit(ranked: list[tuple[int, str]], width: int) -> str:
    """As many parts as fit, the lowest ranks first, in their order of appearance."""
    while len(ranked) > 1 and len("  ".join(part for _, part in ranked)) > width:
        ranked = [entry for entry in ranked if entry != max(ranked)]
    return "  ".join(part for _, part in ranked) or "starting"
