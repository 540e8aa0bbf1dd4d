"""The errors a person can meet, each saying what is wrong, which key, and what to do.

    TidemillError               anything Tidemill reports on purpose; printed as one line
    ├── SpecError               a configuration key is wrong: `key`, `problem`, `remedy`
    ├── DataError               the corpus is missing, empty or unreadable
    ├── StorageError            a path or bucket cannot be reached, read or written
    ├── CheckpointError         no checkpoint fits, or none is readable
    │   └── CorruptCheckpoint   one checkpoint failed its own size or checksum
    └── TrainingError           the run started and then failed; carries the worker's traceback
        └── HopelessError       ... and is not worth another try

Doors (`jobs/`) turn the first four into exit code 2, because nothing has been spent yet, a
`TrainingError` into exit code 1, because the same command may go on, and a `HopelessError` into
exit code 3, because it would not. A run that stops because money or time runs short ends with 4.
Everything else is a bug in Tidemill, keeps its traceback, and is
exit code 1.
"""

from __future__ import annotations

from typing import cast


class TidemillError(Exception):
    """Base of every error Tidemill raises on purpose."""

    exit_code = 2


class SpecError(TidemillError):
    """A configuration key has a value that cannot work.

    Args:
        key: Dotted key as the user types it, e.g. `batch.micro_size`.
        problem: What is wrong with its value.
        remedy: What to type instead.
    """

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}; {remedy}")
        self.key = key
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, str, str]]:
        """Survive the way from a worker to the driver."""
        return type(self), (self.key, self.problem, self.remedy)


class DataError(TidemillError):
    """The corpus is missing, empty or unreadable."""


class StorageError(TidemillError):
    """A path or bucket cannot be reached, read or written."""


class CheckpointError(TidemillError):
    """No checkpoint fits the run, or none is readable."""


class CorruptCheckpoint(CheckpointError):
    """One checkpoint failed its own size or checksum."""


class TrainingError(TidemillError):
    """The run started and then failed.

    Args:
        summary: One line naming the rank and the cause.
        details: The failing worker's traceback, or an empty string.
        rank: The rank that failed first; None if no single one is to blame.
    """

    exit_code = 1

    def __init__(self, summary: str, details: str = "", rank: int | None = None) -> None:
        super().__init__(summary)
        self.details = details
        self.rank = rank

    def __reduce__(self) -> tuple[type[TrainingError], tuple[str, str, int | None]]:
        """Survive the way from a worker to the driver."""
        return type(self), (str(self), self.details, self.rank)


class HopelessError(TrainingError):
    """The run failed, and is not worth another try: it would fail like that again."""

    exit_code = 3


def forget_frames(error: BaseException | None) -> None:
    """Make an exception let go of the frames that it passed through, and of what they refer to.

    Format it first, if somebody is to read where they were. To clear the frames of local variables
    would not do: a frame also holds its function, and with that what the function closes over.

    Args:
        error: Also what it came from, and what it is a group of.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        held = pending.pop()
        if held is None or id(held) in seen:
            continue
        seen.add(id(held))
        held.__traceback__ = None
        pending += [held.__cause__, held.__context__]
        if isinstance(held, BaseExceptionGroup):
            pending += cast("BaseExceptionGroup[BaseException]", held).exceptions
