"""Jobs are followed to their end, taken over rather than doubled, and lost with their cluster."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from tests.kit.doors import ROOT
from tidemill.launch import jobs as module
from tidemill.launch.drivers import Ending, Life
from tidemill.launch.jobs import JobDrivers, read_environment
from tidemill.launch.stop import Interrupts, save_marker
from tidemill.storage import Location, exists, locate

ENVIRONMENT = {"working_dir": "/mill"}


@dataclass
class Details:
    """What a cluster knows of a job."""

    submission_id: str
    metadata: dict[str, str] | None = None
    status: JobStatus = JobStatus.RUNNING
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Cluster:
    """Stands in for a `JobSubmissionClient`, and for what is behind it."""

    jobs: dict[str, Details] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    down: bool = False
    forgets: bool = False
    logs: list[list[str]] = field(default_factory=list)
    """What each connection shows; all but the last one break."""

    def _answer(self) -> None:
        if self.down:
            raise ConnectionError("no route to head\nand more")
        if self.forgets:
            raise RuntimeError("Request failed with status code 404: no such job")

    def submit_job(self, **request: Any) -> str:
        self._answer()
        self.submitted.append(request)
        job = f"raysubmit_{len(self.submitted)}"
        self.jobs[job] = Details(job, request["metadata"])
        return job

    def list_jobs(self) -> list[Details]:
        self._answer()
        return list(self.jobs.values())

    def get_job_info(self, job: str) -> Details:
        self._answer()
        return self.jobs[job]

    def stop_job(self, job: str) -> bool:
        self._answer()
        self.stopped.append(job)
        return True

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        assert job in self.jobs
        for text in self.logs.pop(0) if self.logs else []:
            yield text
        if self.logs:
            raise RuntimeError("WebSocket connection closed unexpectedly")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> Location:
    (tmp_path / "mill").mkdir()
    return locate(str(tmp_path / "mill"))


@pytest.fixture
def start(run: Location) -> Callable[..., Life]:
    """Start a driver on a cluster."""

    def start_it(cluster: Cluster, show: Callable[[str], None] = lambda _: None) -> Life:
        def connect() -> Cluster:
            cluster._answer()
            return cluster

        command = ["python", "jobs/train.py", "name=mill", "prompt=a b"]
        return JobDrivers(connect, command, ENVIRONMENT, run, show).start()

    return start_it


def test_a_driver_is_submitted_as_it_would_be_by_hand(
    start: Callable[..., Life], run: Location
) -> None:
    cluster = Cluster()
    life = start(cluster)
    assert life.name == "job raysubmit_1"
    assert cluster.submitted == [
        {
            "entrypoint": "python jobs/train.py name=mill 'prompt=a b'",
            "runtime_env": ENVIRONMENT,
            "metadata": {"tidemill_run": run.uri},
        }
    ]
    assert life.ended() is None


@pytest.mark.parametrize(
    ("status", "code", "ending"),
    [
        (JobStatus.SUCCEEDED, 0, Ending(0, "finished")),
        (JobStatus.STOPPED, None, Ending(143, "was stopped")),
        (JobStatus.FAILED, 3, Ending(3, "failed with exit code 3")),
        (JobStatus.FAILED, -9, Ending(-9, "was ended by SIGKILL")),
        (JobStatus.FAILED, None, Ending(None, "failed (its supervisor died)")),
        (JobStatus.PENDING, None, None),
        (JobStatus.RUNNING, None, None),
    ],
    ids=str,
)
def test_the_end_of_a_job_is_told(
    status: JobStatus, code: int | None, ending: Ending | None, start: Callable[..., Life]
) -> None:
    cluster = Cluster()
    life = start(cluster)
    job = cluster.jobs["raysubmit_1"]
    job.status, job.driver_exit_code, job.message = status, code, "its supervisor died\nat noon"
    assert life.ended() == ending


def test_a_job_that_drives_the_run_already_is_taken_over(
    start: Callable[..., Life], run: Location
) -> None:
    mine = {"tidemill_run": run.uri}
    jobs = [
        Details("other", {"tidemill_run": f"{run.uri}-2"}),
        Details("plain", None),
        Details("past", mine, JobStatus.FAILED),
        Details("mine", mine),
    ]
    cluster = Cluster({job.submission_id: job for job in jobs})
    assert start(cluster).name == "job mine"
    assert cluster.submitted == []
    cluster.jobs["mine"].status = JobStatus.STOPPED
    assert start(cluster).name == "job raysubmit_1"


def test_a_cluster_that_does_not_answer_is_tried_again_later(start: Callable[..., Life]) -> None:
    life = start(Cluster(down=True))
    life.send(signal.SIGTERM)
    assert life.ended() == Ending(None, "could not be submitted (no route to head)")


def test_a_cluster_may_be_out_of_reach_for_a_while(
    start: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    life = start(cluster)
    cluster.down = True
    assert life.ended() is None
    life.send(signal.SIGTERM)
    monkeypatch.setattr(module, "UNREACHABLE_S", 0.0)
    assert life.ended() == Ending(None, "is out of reach (no route to head)")


def test_a_cluster_that_came_back_without_the_job_has_lost_it(start: Callable[..., Life]) -> None:
    cluster = Cluster()
    life = start(cluster)
    cluster.forgets = True
    ending = life.ended()
    assert ending is not None
    assert ending.code is None
    assert ending.told.startswith("is not known to its cluster any more (Request failed with")


def test_a_job_is_stopped_once_and_left_the_second_time(start: Callable[..., Life]) -> None:
    cluster = Cluster()
    life = start(cluster)
    life.send(signal.SIGINT)
    assert cluster.stopped == ["raysubmit_1"]
    assert life.ended() is None
    life.send(signal.SIGINT)
    assert cluster.stopped == ["raysubmit_1"]
    assert life.ended() == Ending(130, "was left while it stops")


def test_a_job_is_asked_to_save_through_storage(start: Callable[..., Life], run: Location) -> None:
    cluster = Cluster()
    life = start(cluster)
    life.send(signal.SIGUSR1)  # nobody is there yet to be asked
    with Interrupts(run, 3, pytest.fail):
        assert not exists(save_marker(run, 3))
        life.send(signal.SIGUSR1)
        assert exists(save_marker(run, 3))
    assert cluster.stopped == []


def test_what_a_job_prints_is_shown_once(start: Callable[..., Life]) -> None:
    """A connection that breaks is made anew, and begins with the first line again."""
    shown: list[str] = []
    ended = threading.Event()

    def show(text: str) -> None:
        shown.append(text)
        if "three" in text:
            ended.set()

    start(Cluster(logs=[["one\ntw"], ["one\n", "two\nthree\n"]]), show)
    assert ended.wait(30.0)
    assert "".join(shown) == "one\ntwo\nthree\n"


def test_a_client_has_little_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JobSubmissionClient", lambda address: f"client of {address}")
    loggers = [logging.getLogger(name) for name in module.CHATTY]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    assert module.connect("http://head:8265") == "client of http://head:8265"
    assert {logger.level for logger in loggers} == {logging.ERROR}


def test_the_environment_of_jobs_is_the_one_of_the_repository() -> None:
    environment = read_environment(ROOT)
    assert environment["working_dir"] == str(ROOT)
    assert environment["py_modules"] == [str(ROOT / "platform" / "tidemill")]
    assert environment["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
