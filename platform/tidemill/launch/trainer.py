"""The driver: start Ray and the workers, show the run, pass on a wish to stop, tell how it ended.

`fit` runs in a thread so that the main thread can follow the event log and take signals: Ray's own
reaction to Ctrl-C aborts the workers without a checkpoint, and it has none to `ray job stop`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ray.train import FailureConfig, RunConfig, ScalingConfig

from tidemill.launch.elastic import ElasticTrainer, MeetingConfig
from tidemill.launch.failure import diagnose
from tidemill.launch.follower import Follower
from tidemill.launch.judge import Judge
from tidemill.launch.lock import sole_driver
from tidemill.launch.preflight import Preflight
from tidemill.launch.purse import Purse, open_purse
from tidemill.launch.session import ray_session
from tidemill.launch.stop import OUT_OF_BUDGET, Interrupts
from tidemill.launch.trust import among_trusted
from tidemill.launch.vaults import run_key, tended
from tidemill.launch.worker import run_worker
from tidemill.report.live import LiveView
from tidemill.spec.base import to_plain
from tidemill.storage import make_directory, publish, sweep_hidden
from tidemill.train.host import ALLOCATOR

LOCAL_POLL_S = 0.2
REMOTE_POLL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a launch ended.

    Attributes:
        step: Steps that the newest checkpoint has taken.
        finished: Whether the run is done.
        exit_code: 0, `OUT_OF_BUDGET`, or 128 + the signal that stopped it.
        reason: Why it stopped before it was done, if that was for money or time.
        spent_usd: Dollars that its machines have cost over all launches; 0 if nobody says.
    """

    step: int
    finished: bool
    exit_code: int = 0
    reason: str = ""
    spent_usd: float = 0.0

    @property
    def message(self) -> str:
        """One line for people."""
        cost = f", for {self.spent_usd:,.2f} usd" if self.spent_usd else ""
        if self.finished:
            return f"finished {self.step} steps{cost}"
        stopped = f"stopped with a checkpoint at step {self.step}{cost}"
        if self.reason:
            return f"{stopped}: {self.reason}; with more, the same command goes on from there"
        return f"{stopped}; the same command goes on from there"


def train(ready: Preflight, say: Callable[[str], None]) -> Outcome:
    """Train a run to its end, or to a stop.

    Args:
        ready: What `preflight` returned.
        say: Shows one line to the person.

    Raises:
        SpecError: The cluster can never satisfy `scale`, or the run is being trained already.
        TrainingError: A worker failed more often than `scale.max_failures` allows, or twice in the
            same way without a step in between.
    """
    if "RAY_ADDRESS" in os.environ:
        ready = dataclasses.replace(ready, spec=among_trusted(ready.spec))
    with sole_driver(ready.run):
        _write_spec(ready)
        return _drive(ready, say)


def _drive(ready: Preflight, say: Callable[[str], None]) -> Outcome:
    """Train, as the only driver of the run."""
    follower = Follower(ready)
    view = LiveView(ready.spec.steps) if ready.spec.report.live else None
    tell = view.say if view is not None else say
    with (
        ray_session(ready.spec, tell),
        _near_memory(ready),
        Interrupts(ready.run, ready.launch, tell) as signals,
        open_purse(ready.spec, ready.run, ready.launch, tell) as purse,
    ):
        try:
            _fit_until_done(_Launch(ready, follower, view, tell, signals, purse))
        finally:
            follower.feed(view)
            if view is not None:
                view.close()
    if follower.finished:
        return Outcome(step=follower.step, finished=True, spent_usd=purse.spent_usd)
    return Outcome(
        step=follower.step,
        finished=False,
        exit_code=signals.exit_code or (OUT_OF_BUDGET if purse.reason else 0),
        reason=purse.reason,
        spent_usd=purse.spent_usd,
    )


def _near_memory(ready: Preflight) -> contextlib.AbstractContextManager[None]:
    """Whoever looks after the memory of nodes that holds snapshots, if any is to."""
    if not ready.spec.checkpoint.near_gib:
        return contextlib.nullcontext()
    key = run_key(ready.run, ready.spec, ready.corpus.digest)
    return tended(key, anew=ready.launch == 1)


@dataclass(frozen=True, slots=True)
class _Launch:
    """What takes part in a launch beside Ray."""

    ready: Preflight
    follower: Follower
    view: LiveView | None
    say: Callable[[str], None]
    signals: Interrupts
    purse: Purse


def _fit_until_done(launch: _Launch) -> None:
    """Start the controller, again if it was lost itself; the workers' failures it judges alone."""
    follower = launch.follower
    judge = Judge(launch.ready.spec.scale.max_failures)
    while (raised := _fit(launch)) is not None:
        failure = diagnose(raised)
        follower.note_failure(failure.error)
        verdict = judge.judge(failure.error, follower.last_step, failure.fault)
        if failure.judged or launch.signals.received or launch.purse.reason:
            raise failure.error
        if verdict.error is not None:
            raise verdict.error
        launch.say(f"{failure.error}; going on from the newest state (failure {verdict.failures})")


def _fit(launch: _Launch) -> BaseException | None:
    """One life of the controller; what ended it, or None."""
    ready, follower, purse = launch.ready, launch.follower, launch.purse
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="tidemill-ray-") as scratch:
                _make_trainer(ready, scratch).fit()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            failed.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOCAL_POLL_S if ready.run.is_local else REMOTE_POLL_S)
        follower.feed(launch.view)
        launch.signals.raise_if_repeated()
        purse.saving_takes(follower.step_s + follower.save_s)
        purse.raise_if_overdue()
    follower.feed(launch.view)
    return failed[0] if failed else None


def _make_trainer(ready: Preflight, scratch: str) -> ElasticTrainer:
    """Ray's trainer. It keeps nothing: checkpoints are ours, and failures are ours to judge."""
    scale = ready.spec.scale
    resources = {"CPU": scale.cpus_per_worker}
    if scale.gpus_per_worker:
        resources["GPU"] = scale.gpus_per_worker
    elastic = (scale.least, scale.workers)
    return ElasticTrainer(
        run_worker,
        on_cluster="RAY_ADDRESS" in os.environ,
        train_loop_config={
            "spec": to_plain(ready.spec),
            "corpus": dataclasses.asdict(ready.corpus),
            "launch": ready.launch,
        },
        torch_config=MeetingConfig(
            backend="nccl" if scale.gpus_per_worker else "gloo",
            timeout_s=int(scale.collective_timeout_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=elastic if scale.elastic else scale.workers,
            label_selector=dict(scale.labels) or None,
            use_gpu=scale.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"{ready.spec.name}-a{ready.launch:04d}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={} if scale.gpus_per_worker else {"env_vars": ALLOCATOR},
        ),
    )


def _write_spec(ready: Preflight) -> None:
    """Leave spec and corpus beside the events, for people and for the other doors."""
    make_directory(ready.run)
    sweep_hidden(ready.run)
    for name, plain in (
        ("spec.json", to_plain(ready.spec)),
        ("corpus.json", dataclasses.asdict(ready.corpus)),
    ):
        publish(ready.run / name, (json.dumps(plain, indent=2) + "\n").encode())
