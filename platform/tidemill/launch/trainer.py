"""The driver: start Ray and the workers, show the run, pass on a wish to stop, tell how it ended.

`fit` runs in a thread so that the main thread can follow the event log and take signals: Ray's own
reaction to Ctrl-C aborts the workers without a checkpoint, and it has none to `ray job stop`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

# Imported before Ray starts: in a `ray job` driver, torch may fail to find its own libraries later.
import torch  # noqa: F401
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from tidemill.errors import SpecError, TidemillError, TrainingError
from tidemill.launch.failure import explain_failure
from tidemill.launch.preflight import Preflight
from tidemill.launch.stop import request_stop, withdraw_stop
from tidemill.launch.worker import run_worker
from tidemill.report.events import EventTail
from tidemill.report.live import LiveView
from tidemill.spec.base import to_plain
from tidemill.spec.progress import Event, EventKind
from tidemill.spec.run import RunSpec
from tidemill.storage import make_directory, publish

POLL_S = 0.2
SIGNALLED = 128
ENVIRONMENT = {
    # Paths were resolved in the driver; workers stay where they are.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a launch ended.

    Attributes:
        step: Steps that the newest checkpoint has taken.
        finished: Whether the run is done.
        exit_code: 0, or 128 + the signal that stopped it.
    """

    step: int
    finished: bool
    exit_code: int = 0

    @property
    def message(self) -> str:
        """One line for people."""
        if self.finished:
            return f"finished {self.step} steps"
        return f"stopped with a checkpoint at step {self.step}; the same command goes on from there"


def train(ready: Preflight, say: Callable[[str], None]) -> Outcome:
    """Train a run to its end, or to a stop.

    Args:
        ready: What `preflight` returned.
        say: Shows one line to the person.

    Raises:
        SpecError: The cluster can never satisfy `scale`.
        TrainingError: A worker failed more often than `scale.max_failures` allows, or twice in the
            same way without a step in between.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _write_spec(ready)
    with _ray(ready.spec, say), _Signals(ready, say) as signals:
        follower = _Follower(ready)
        view = LiveView(ready.spec.steps) if ready.spec.report.live else None
        try:
            _fit_until_done(ready, follower, view, say, signals)
        finally:
            follower.feed(view)
            if view is not None:
                view.close()
    return Outcome(
        step=follower.step,
        finished=follower.finished,
        exit_code=0 if follower.finished else signals.exit_code,
    )


def _fit_until_done(
    ready: Preflight,
    follower: _Follower,
    view: LiveView | None,
    say: Callable[[str], None],
    signals: _Signals,
) -> None:
    """Start the workers, again after a failure as long as that may help.

    It does not help if Tidemill refused something, if no step was ever taken, or if the same thing
    happened again at the same step.
    """
    allowed = ready.spec.scale.max_failures
    failures = 0
    last: tuple[str, int | None] | None = None
    while (error := _fit(ready, follower, view, signals)) is not None:
        failures += 1
        this = (str(error), follower.last_step)
        hopeless = not isinstance(error, TrainingError) or follower.last_step is None
        exhausted = 0 <= allowed < failures
        if hopeless or exhausted or this == last or signals.received:
            raise error
        last = this
        say(f"{error}; going on from the newest checkpoint (failure {failures})")


def _fit(
    ready: Preflight, follower: _Follower, view: LiveView | None, signals: _Signals
) -> TidemillError | None:
    """One life of the worker group; the failure that ended it, or None."""
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
        thread.join(POLL_S)
        follower.feed(view)
        signals.raise_if_repeated()
    follower.feed(view)
    return explain_failure(failed[0]) if failed else None


def _make_trainer(ready: Preflight, scratch: str) -> TorchTrainer:
    """Ray's trainer. It keeps nothing: checkpoints are ours, and failures are ours to judge."""
    scale = ready.spec.scale
    resources = {"CPU": scale.cpus_per_worker}
    if scale.gpus_per_worker:
        resources["GPU"] = scale.gpus_per_worker
    return TorchTrainer(
        run_worker,
        train_loop_config={
            "spec": to_plain(ready.spec),
            "corpus": dataclasses.asdict(ready.corpus),
            "launch": ready.launch,
        },
        torch_config=TorchConfig(
            backend="nccl" if scale.gpus_per_worker else "gloo",
            timeout_s=int(scale.collective_timeout_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"{ready.spec.name}-a{ready.launch:04d}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def _write_spec(ready: Preflight) -> None:
    """Leave spec and corpus beside the events, for people and for the other doors."""
    make_directory(ready.run)
    for name, plain in (
        ("spec.json", to_plain(ready.spec)),
        ("corpus.json", dataclasses.asdict(ready.corpus)),
    ):
        publish(ready.run / name, (json.dumps(plain, indent=2) + "\n").encode())


@contextlib.contextmanager
def _ray(spec: RunSpec, say: Callable[[str], None]) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or one on this machine for the life of the run."""
    address = os.environ.get("RAY_ADDRESS")
    scale = spec.scale
    local: dict[str, Any] = {
        "num_cpus": max(os.cpu_count() or 1, -int(-scale.workers * scale.cpus_per_worker // 1)),
        "include_dashboard": spec.report.dashboard,
    }
    # A Ray started for the run must not leave a token behind, nor need one: it is on loopback.
    os.environ.setdefault("RAY_AUTH_MODE", "token" if address else "disabled")
    context = ray.init(
        address=address or "local",
        log_to_driver=spec.report.worker_logs,
        logging_level=logging.WARNING,
        configure_logging=True,
        **({} if address else local),
    )
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    try:
        if spec.report.dashboard and context.dashboard_url:
            say(f"dashboard: http://{context.dashboard_url}")
        _check_cluster(spec, say, local=address is None)
        yield
    finally:
        ray.shutdown()


def _check_cluster(spec: RunSpec, say: Callable[[str], None], *, local: bool) -> None:
    """Refuse on one machine what it will never have; on a cluster, say what is waited for."""
    have = ray.cluster_resources()
    scale = spec.scale
    wanted = {
        "CPU": scale.workers * scale.cpus_per_worker,
        "GPU": float(scale.workers * scale.gpus_per_worker),
    }
    for resource, amount in wanted.items():
        if have.get(resource, 0.0) >= amount:
            continue
        if local:
            raise SpecError(
                "scale.workers" if resource == "CPU" else "scale.gpus_per_worker",
                f"asks for {amount:g} {resource} and this machine has {have.get(resource, 0.0):g}",
                "ask for fewer, or name a cluster in RAY_ADDRESS",
            )
        say(f"waiting for the cluster to have {amount:g} {resource}")


class _Follower:
    """Reads the event log of the launch's attempts as it grows, and remembers where the run is."""

    def __init__(self, ready: Preflight) -> None:
        self._run = ready.run
        self._attempt = ready.launch
        self._tail = EventTail(ready.run, ready.launch)
        self.step = ready.step
        self.last_step: int | None = None
        self.finished = False

    def feed(self, view: LiveView | None) -> None:
        """Pass new events on to `view`."""
        events = self._tail.poll()
        following = EventTail(self._run, self._attempt + 1)
        if later := following.poll():
            events += [*self._tail.poll(), *later]
            self._attempt, self._tail = self._attempt + 1, following
        for event in events:
            self._remember(event)
        if view is not None and events:
            view.feed(events)

    def _remember(self, event: Event) -> None:
        if event.kind in {EventKind.checkpoint_saved, EventKind.restored}:
            self.step = event.fields["step"]
        if event.kind is EventKind.step:
            self.last_step = event.fields["step"]
        self.finished = self.finished or event.kind is EventKind.finished


class _Signals:
    """Turns the first SIGINT or SIGTERM into a request to save and stop, the second into an end."""

    def __init__(self, ready: Preflight, say: Callable[[str], None]) -> None:
        self._ready, self._say = ready, say
        self._previous: dict[int, Any] = {}
        self.received: list[int] = []

    @property
    def exit_code(self) -> int:
        """128 + the first signal, or 0."""
        return SIGNALLED + self.received[0] if self.received else 0

    def raise_if_repeated(self) -> None:
        """End at once if the person insists."""
        if len(self.received) > 1:
            raise KeyboardInterrupt

    def __enter__(self) -> _Signals:
        """Take over both signals; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back and withdraw the request."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.received:
            withdraw_stop(self._ready.run, self._ready.launch)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._say("stopping: saving a checkpoint first (once more to end at once)")
            request_stop(self._ready.run, self._ready.launch)
