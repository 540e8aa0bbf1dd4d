"""Drivers as jobs of a Ray cluster, submitted to its dashboard.

A job goes on when its supervisor dies, because the cluster looks after it. So before a supervisor
submits one it looks for a job that drives the run already, and takes that over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobSubmissionClient

from tidemill.launch.drivers import Ending, Life, describe
from tidemill.launch.stop import SIGNALLED, find_launch, request_save
from tidemill.storage import Location

LOOK_S = 1.0
UNREACHABLE_S = 120.0
"""Seconds for which a cluster that does not answer may come back with its jobs."""
# They tell of every file that is left out of a package, each time.
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env")
LABEL = "tidemill_run"
"""Key of a job's metadata that says which run it drives."""


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address`, with little to say of its own."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return JobSubmissionClient(address)


def read_environment(root: Path) -> dict[str, Any]:
    """The runtime environment of jobs, as `conf/runtime_env.yaml` says, its paths absolute."""
    found: dict[str, Any] = yaml.safe_load((root / "conf" / "runtime_env.yaml").read_text())
    modules = [str(root / module) for module in found["py_modules"]]
    return found | {"working_dir": str(root), "py_modules": modules}


class JobDrivers:
    """Drivers as jobs of a Ray cluster.

    Args:
        connect: Gives a `JobSubmissionClient`.
        command: What a job runs, in the working directory of `environment`.
        environment: The job's runtime environment.
        run: Directory of the run.
        show: Shows what a job prints.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        command: Sequence[str],
        environment: Mapping[str, Any],
        run: Location,
        show: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._command = shlex.join(command)
        self._environment = dict(environment)
        self._run = run
        self._show = show

    def busy(self) -> str | None:
        """See `Drivers.busy`; a job that is at work is taken over."""
        return None

    def start(self) -> Life:
        """See `Drivers.start`."""
        try:
            client = self._connect()
            job = self._find(client) or client.submit_job(
                entrypoint=self._command,
                runtime_env=self._environment,
                metadata={LABEL: self._run.uri},
            )
        except (OSError, RuntimeError) as error:
            return NoLife(f"could not be submitted ({_first_line(error)})")
        return JobLife(client, job, self._run, self._show)

    def _find(self, client: Any) -> str | None:
        """A job that drives this run already."""
        return next(
            (
                job.submission_id
                for job in client.list_jobs()
                if (job.metadata or {}).get(LABEL) == self._run.uri and not job.status.is_terminal()
            ),
            None,
        )


class NoLife:
    """A driver that never was."""

    def __init__(self, told: str) -> None:
        self.name = "a job"
        self._told = told

    def ended(self) -> Ending | None:
        """See `Life.ended`; at once."""
        return Ending(None, self._told)

    def send(self, number: int) -> None:
        """See `Life.send`; there is nobody."""


class JobLife:
    """A driver that is a job."""

    def __init__(self, client: Any, job: str, run: Location, show: Callable[[str], None]) -> None:
        self.name = f"job {job}"
        self._client = client
        self._job = job
        self._run = run
        self._show = show
        self._stopping = False
        self._left: Ending | None = None
        self._answered_s = time.monotonic()
        self._closing = threading.Event()
        self._tail = threading.Thread(target=self._keep_showing, name="job-log", daemon=True)
        self._tail.start()

    def ended(self) -> Ending | None:
        """See `Life.ended`."""
        self._closing.wait(LOOK_S)
        ending = self._left or self._look()
        if ending is not None:
            self._tail.join(LOOK_S)  # the end of the log comes with the end of the job
            self._closing.set()
        return ending

    def _look(self) -> Ending | None:
        try:
            info = self._client.get_job_info(self._job)
        except RuntimeError as error:
            return Ending(None, f"is not known to its cluster any more ({_first_line(error)})")
        except OSError as error:
            if time.monotonic() - self._answered_s < UNREACHABLE_S:
                return None
            return Ending(None, f"is out of reach ({_first_line(error)})")
        self._answered_s = time.monotonic()
        return _ending(info)

    def send(self, number: int) -> None:
        """See `Life.send`."""
        with contextlib.suppress(OSError, RuntimeError):
            if number == signal.SIGUSR1:
                launch = find_launch(self._run)
                if launch is not None:
                    request_save(self._run, launch)
            elif self._stopping:
                self._left = Ending(SIGNALLED + number, "was left while it stops")
            else:
                self._stopping = True
                self._client.stop_job(self._job)

    def _keep_showing(self) -> None:
        """Show what the job prints; a connection that breaks is made anew."""
        shown = 0

        async def show() -> None:
            nonlocal shown
            skipped = shown
            async for text in self._client.tail_job_logs(self._job):
                fresh = text[skipped:]
                skipped = max(0, skipped - len(text))
                shown += len(fresh)
                if fresh:
                    self._show(fresh)

        while not self._closing.is_set():
            try:
                asyncio.run(show())
            except (OSError, RuntimeError):
                self._closing.wait(LOOK_S)
            else:
                return


def _ending(info: Any) -> Ending | None:
    """What a job's details say."""
    code = info.driver_exit_code
    match info.status.value:
        case "SUCCEEDED":
            return Ending(0, describe(0))
        case "STOPPED":
            return Ending(SIGNALLED + signal.SIGTERM, "was stopped")
        case "FAILED" if code is None:
            return Ending(None, f"failed ({_first_line(info.message)})")
        case "FAILED":
            return Ending(code, describe(code))
        case _:
            return None


def _first_line(said: object) -> str:
    return (str(said).strip().splitlines() or [type(said).__name__])[0]
