"""A group whose processes come from a pool and go back to it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    PlacementGroupHandle,
)
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import (
    Worker,
    WorkerStatus,
)
from ray.train.v2._internal.util import time_monotonic

from tidemill.launch.health import Vitals
from tidemill.launch.pool import Pool, Process, end
from tidemill.launch.steward import Steward

SPAWN_S = 90.0
"""Seconds that the processes of a new group may take to start."""


class NoPlacementGroup(PlacementGroupHandle):
    """Stands in for one: its removal would kill every process in it."""

    placement_group = None  # type: ignore[assignment]

    def ready(self) -> Any:
        """See `PlacementGroupHandle.ready`."""
        return ray.put(True)  # noqa: FBT003

    def wait(self, timeout_seconds: float = 30) -> bool:
        """See `PlacementGroupHandle.wait`."""
        return True

    def shutdown(self) -> None:
        """See `PlacementGroupHandle.shutdown`."""


class KeptGroup(WorkerGroup):
    """A group whose processes come from a pool and go back to it."""

    steward: Steward
    pool: Pool
    ending = False
    """Whether the run is over, so that nothing is kept."""

    def rejoin(self) -> dict[str, Any]:
        """What led to this group, for the worker that records it."""
        self.steward.timeline.mark("join")
        return self.steward.timeline.fields()

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        self._assert_inactive()
        context, steward = self._worker_group_context, self.steward
        with contextlib.ExitStack() as stack:
            for callback in self._callbacks:
                stack.enter_context(callback.on_worker_group_start())
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            processes = self.pool.take(steward.chosen, SPAWN_S)
            if processes is None:
                raise WorkerGroupStartupFailedError("a process did not start in time")
            steward.timeline.mark("spawn")
            workers = self._rank(processes)
            try:
                self._form(workers)
            except RayError as error:
                self._release()
                raise WorkerGroupStartupFailedError(
                    "a process ended while others joined"
                ) from error
            steward.started()

    def _rank(self, processes: list[Process]) -> list[Worker]:
        """Give ranks, those of one node in a row, and tell the steward."""
        resources = self._worker_group_context.resources_per_worker
        owner: dict[int, Process] = {}
        workers: list[Worker] = []
        for process in processes:
            workers.append(Worker(process.actor, process.metadata, resources))
            owner[id(workers[-1])] = process
        ranked = WorkerGroup._assign_worker_ranks(workers)
        self.steward.joining([owner[id(worker)] for worker in ranked])
        return ranked

    def _form(self, workers: list[Worker]) -> None:
        self._init_train_context(workers, None)  # type: ignore[arg-type] - nothing is reported to Ray
        self._worker_group_state = WorkerGroupState(
            start_time=time_monotonic(),
            placement_group_handle=NoPlacementGroup(),
            workers=workers,
            sync_actor=None,  # type: ignore[arg-type]
        )
        for callback in self._callbacks:
            callback.after_worker_group_start(self)
        train_fn = self._worker_group_context.train_fn_ref
        ray.get([worker.actor.run_train_fn.remote(train_fn) for worker in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    @staticmethod
    def _decorate_worker_log_file_paths(workers: list[Worker]) -> list[Worker]:
        """Saves a round trip: nothing here shows them."""
        return workers

    def _poll_workers_and_collect_errors(self, timeout: float | None) -> list[WorkerStatus]:
        found = super()._poll_workers_and_collect_errors(timeout)
        self.steward.vigil.follow(vitals_of(dict(enumerate(found))))
        for rank, error in self.steward.vigil.condemned.items():
            found[rank] = WorkerStatus(running=False, error=error)
        for rank, status in enumerate(found):
            if isinstance(status.error, WorkerHealthCheckFailedError):
                self.steward.vigil.doomed.add(rank)
        return found

    def shutdown(self) -> None:
        """Park the processes that can go on, end the others."""
        self._assert_active()
        for callback in self._callbacks:
            callback.before_worker_group_shutdown(self)
        self._release()
        self._clear_state()
        for callback in self._callbacks:
            callback.after_worker_group_shutdown(self._worker_group_context)

    def abort(self) -> None:
        """See `WorkerGroup.abort`."""
        self.ending = True
        self.shutdown()

    def _release(self) -> None:
        steward, patience_s = self.steward, self.steward.patience_s
        waiting: dict[Any, Process] = {}
        for rank, process in enumerate(steward.group):
            if self.ending or rank in steward.vigil.doomed:
                end(process)
            else:
                waiting[process.actor.park.remote(patience_s)] = process
        fit: list[Process] = []
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=patience_s + 1.0)
            for reference in done or list(waiting):
                process = waiting.pop(reference)
                if done and _says_yes(reference):
                    fit.append(process)
                else:
                    end(process)
        self.pool.park(fit)
        steward.ended()


def vitals_of(statuses: Mapping[int, WorkerStatus]) -> dict[int, Vitals | None]:
    """What each rank told of itself; None for one that did not answer."""
    return {rank: getattr(status, "vitals", None) for rank, status in statuses.items()}


def _says_yes(reference: Any) -> bool:
    try:
        return bool(ray.get(reference))
    except RayError:
        return False
