"""A Ray to run on: the cluster that RAY_ADDRESS names, or one on this machine for the run's life.

Ray's own voice is turned down to warnings; what workers print stays in Ray's log files unless asked
for, and a failure is told from the exception it left.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from tidemill.errors import SpecError, TrainingError
from tidemill.launch.failure import one_line
from tidemill.launch.nodes import matches
from tidemill.spec.run import RunSpec

ENVIRONMENT = {
    # Paths were resolved in the driver; workers stay where they are.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # The steward looks for nodes that go, and does not wait until they have gone.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
# Workers started ahead of need have another environment than Train's: none is ever used.
LOCAL = {"RAY_prestart_worker_first_driver": "0"}
# Warns, at every start, that a cluster which Ray starts asks for a token. That is as it should be.
CHATTY = "ray._private.authentication.authentication_token_setup"


@contextlib.contextmanager
def ray_session(spec: RunSpec, say: Callable[[str], None]) -> Iterator[None]:
    """Connect, check that the run can be placed, and disconnect at the end.

    Args:
        spec: The run.
        say: Shows one line to the person.

    Raises:
        SpecError: This machine will never have what `scale` asks for.
    """
    address = os.environ.get("RAY_ADDRESS")
    # It costs a process; on one machine without a dashboard there is nobody to tell.
    tracked = "1" if address or spec.report.dashboard else "0"
    wanted = {**ENVIRONMENT, TRACKING: tracked, **({} if address else LOCAL)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    scale = spec.scale
    local: dict[str, Any] = {
        "num_cpus": max(os.cpu_count() or 1, math.ceil(scale.workers * scale.cpus_per_worker)),
        "include_dashboard": spec.report.dashboard,
    }
    logging.getLogger(CHATTY).setLevel(logging.ERROR)
    try:
        context = ray.init(
            address=address or "local",
            log_to_driver=spec.report.worker_logs,
            logging_level=logging.WARNING,
            **({} if address else local),
        )
    except (RuntimeError, OSError, RayError) as error:
        what = f"Ray at RAY_ADDRESS={address}" if address else "Ray on this machine"
        raise TrainingError(f"{what} cannot be used: {one_line(error)}", str(error)) from error
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
    if not any(matches(node.get("Labels") or {}, scale.labels) for node in ray.nodes()):
        wanted_labels = ", ".join(f"{key}: {value}" for key, value in scale.labels.items())
        say(f"waiting for a node with the labels that are asked for ({wanted_labels})")
