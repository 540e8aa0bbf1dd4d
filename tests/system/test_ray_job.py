"""`ray job submit` on a running cluster: the package travels, and `ray job stop` saves first."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.kit.doors import ROOT, events_of
from tidemill.checkpoint.manifest import committed
from tidemill.spec.progress import EventKind
from tidemill.storage import locate

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head node of its own with a dashboard; gives the dashboard's address."""
    gcs, dashboard, agent = (_free_port() for _ in range(3))
    head = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"),
        ],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(30)
        psutil.wait_procs(family, timeout=30)


def test_submit_and_stop_saves_a_checkpoint(cluster: str, tmp_path: Path) -> None:
    client = _client(cluster)
    runtime_env = yaml.safe_load((ROOT / "conf" / "runtime_env.yaml").read_text())
    runtime_env["working_dir"] = str(ROOT)
    runtime_env["py_modules"] = [str(ROOT / module) for module in runtime_env["py_modules"]]
    job = client.submit_job(
        entrypoint=shlex.join(
            [
                *(sys.executable, "jobs/train.py", "experiment=parity", "name=job"),
                *(f"storage={tmp_path}", "steps=100000", "checkpoint.every_steps=0"),
            ]
        ),
        runtime_env=runtime_env,
    )
    run = locate(str(tmp_path)) / "job"
    _wait(lambda: len(events_of(run, EventKind.step)) > 2, client, job)
    client.stop_job(job)
    _wait_for_end(client, job)
    assert client.get_job_status(job) is JobStatus.STOPPED
    (stopped,) = events_of(run, EventKind.stopped)
    (newest,) = committed(run)
    assert newest.name == f"step-{stopped.fields['step']:010d}-a0001"


def test_relative_storage_is_refused_in_a_job(cluster: str) -> None:
    client = _client(cluster)
    job = client.submit_job(
        entrypoint=f"{sys.executable} {ROOT / 'jobs' / 'train.py'} experiment=parity",
    )
    _wait_for_end(client, job)
    assert client.get_job_status(job) is JobStatus.FAILED
    assert "error: storage: 'runs' is relative" in client.get_job_logs(job)


def _client(address: str) -> JobSubmissionClient:
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.5)


def _wait(done: Callable[[], bool], client: JobSubmissionClient, job: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        ended = client.get_job_status(job).is_terminal()
        assert not ended, client.get_job_logs(job)
        assert time.monotonic() < until_s, client.get_job_logs(job)
        time.sleep(0.2)


def _wait_for_end(client: JobSubmissionClient, job: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < until_s, client.get_job_logs(job)
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
