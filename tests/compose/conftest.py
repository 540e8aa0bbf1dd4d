"""Open a door in this process, from an empty directory, and see how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tidemill.compose import run_door
from tidemill.spec.base import Spec
from tidemill.spec.run import RunSpec


@dataclass
class Ended:
    """How a door ended, and what its `main` was given."""

    code: int
    out: str
    err: str
    given: list[Any] = field(default_factory=list)

    @property
    def error(self) -> str:
        """The one line that a mistake ends in."""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


@pytest.fixture
def open_door(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ended]:
    """Call with arguments as a shell would pass them; `main` may fail as it likes."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def open_it(
        *arguments: str,
        main: Callable[[Any], None] = lambda _: None,
        config_name: str = "config",
        schema: type[Spec] = RunSpec,
        verbs: str = "",
    ) -> Ended:
        given: list[Any] = []

        def recording(spec: Spec) -> None:
            given.append(spec)
            main(spec)

        monkeypatch.setattr(sys, "argv", ["jobs/door.py", *arguments])
        with pytest.raises(SystemExit) as left:
            run_door(recording, config_name=config_name, schema=schema, verbs=verbs)
        assert Path.cwd() == here
        assert list(here.iterdir()) == [], "a door wrote something where it was opened"
        assert sys.argv == ["jobs/door.py", *arguments]
        told = capsys.readouterr()
        return Ended(code=left.value.code, out=told.out, err=told.err, given=given)  # pyright: ignore[reportArgumentType]

    return open_it
