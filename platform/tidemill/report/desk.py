"""Where answers about runs are given: text or JSON on standard output, progress beside it.

Progress is shown on a terminal only: that of the answer, or else that of standard error, so an
answer can be piped and still be waited for in company.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from tidemill.report.inventory import Proof
from tidemill.report.pages import Answer, make_page, make_proof_line
from tidemill.report.quantities import show_bytes

WIDTH_OF_A_PIPE = 120


class Desk:
    """Gives one answer, in one form.

    Args:
        as_json: One JSON value instead of text.
        console: Where to; standard output by default.
        progress: Where progress is shown, if that is a terminal.
    """

    def __init__(
        self, *, as_json: bool, console: Console | None = None, progress: Console | None = None
    ) -> None:
        self._as_json = as_json
        self._console = console or Console(highlight=False)
        if console is None and not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = WIDTH_OF_A_PIPE
        # One terminal has one console: a second one would write into the first one's bar.
        beside = self._console if self._console.is_terminal else Console(stderr=True)
        self._progress = progress or beside

    def answer(self, page: Answer) -> None:
        """Give the answer."""
        if self._as_json:
            plain = _finite(dataclasses.asdict(page))
            text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.print(make_page(page, time.time()), highlight=False, crop=False)

    def say(self, proof: Proof) -> None:
        """Tell of one checkpoint of many, as soon as it is known; JSON comes all at once."""
        if not self._as_json:
            self._console.print(make_proof_line(proof), highlight=False, soft_wrap=True)

    @contextmanager
    def reading(
        self, what: str, total: int, show: Callable[[float], str] = show_bytes
    ) -> Generator[Callable[[int], None]]:
        """Show how far reading has come.

        Args:
            what: Is read, for people.
            total: Bytes to read, or whatever is counted.
            show: Tells such an amount.

        Yields:
            To be called with how much was read since.
        """
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Amount(show),
            console=self._progress,
            transient=True,
            disable=not self._progress.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda size: bar.advance(task, size)


class _Amount(ProgressColumn):
    """How much there is, how much has been read, and how fast."""

    def __init__(self, show: Callable[[float], str]) -> None:
        super().__init__()
        self._show = show

    def render(self, task: Task) -> Text:
        done = f"{self._show(task.completed)} of {self._show(task.total or 0)}"
        return Text(f"{done}, {self._show(task.speed)}/s" if task.speed else done)


def _finite(value: Any) -> Any:
    """A value that JSON can hold: what is not finite is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
