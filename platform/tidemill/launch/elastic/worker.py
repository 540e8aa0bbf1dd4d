"""What runs in a worker's process: it outlives its groups, and tells how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.worker_group.worker import (
    RayTrainWorker,
    WorkerStatus,
)

from tidemill.launch.health import Vitals
from tidemill.spec.progress import EventKind

if TYPE_CHECKING:
    from ray.train.v2._internal.util import ObjectRefWrapper


@dataclass
class KeptStatus(WorkerStatus):
    """What a worker tells with every poll."""

    vitals: Vitals | None = None


class KeptWorker(RayTrainWorker):
    """A worker whose process goes on from one group to the next."""

    def warm_up(self, config: dict[str, Any], train_fn_ref: ObjectRefWrapper[Any]) -> Any:
        """Do what costs seconds the first time, and say who this is.

        Args:
            config: Of the training function.
            train_fn_ref: It; fetched now, because whoever does so just after a loss may ask the
                lost node, and another one only ten seconds later.
        """
        from tidemill.launch.kept import prepare

        train_fn_ref.get()
        prepare(config)
        return self.get_metadata()

    def environment(self) -> str:
        """The runtime environment of this process, as raylets compare it."""
        return ray.get_runtime_context().get_runtime_env_string()

    def open_meeting(self) -> dict[str, Any]:
        """Have the ranks of the next group meet at this one: `address` and `port`."""
        from tidemill.launch.kept import KEPT

        return KEPT.open_meeting(ray.util.get_node_ip_address())

    def begin(self, rejoin: dict[str, Any]) -> None:
        """A new group: where its ranks meet, and what led to it."""
        from tidemill.launch.kept import KEPT

        _set_torch_distributed_env_vars()
        KEPT.begin(rejoin)

    def poll_status(self) -> KeptStatus:
        """See `RayTrainWorker.poll_status`."""
        from tidemill.launch.kept import KEPT

        told = super().poll_status()
        return KeptStatus(**vars(told), vitals=KEPT.vitals())

    def ask_to_leave(self, stays: bool) -> None:  # noqa: FBT001 - travels as a position
        """See `Kept.ask_to_leave`."""
        from tidemill.launch.kept import KEPT

        KEPT.ask_to_leave(stays=stays)

    def ask_to_save(self) -> None:
        """Ask for a checkpoint."""
        from tidemill.launch.kept import KEPT

        KEPT.saving.set()

    def tell(self, kind: EventKind, fields: Mapping[str, Any]) -> None:
        """See `Kept.tell`."""
        from tidemill.launch.kept import KEPT

        KEPT.tell(kind, fields)

    def park(self, patience_s: float) -> bool:
        """End this process's part in its group; whether it is fit for another one."""
        from tidemill.launch.kept import KEPT

        runner = get_train_context().execution_context.training_thread_runner
        return KEPT.park(runner._thread, patience_s)


@dataclass
class MeetingConfig(TorchConfig):
    """Torch's, for ranks that form their process group themselves."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `BackendConfig`."""
        return MeetingBackend


class MeetingBackend(_TorchBackend):
    """Tells ranks where to meet. They form their group in the thread that also ends it."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """See `Backend.on_start`."""
        workers = worker_group.get_workers()
        place: Any = ray.get(workers[0].actor.open_meeting.remote())
        meeting = {
            **place,
            "backend": backend_config.backend,
            "timeout_s": backend_config.timeout_s,
        }
        rejoin = worker_group.rejoin() | {"meeting": meeting}
        ray.get([worker.actor.begin.remote(rejoin) for worker in workers])

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """See `Backend.on_training_start`; nothing is left to do."""

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """See `Backend.on_shutdown`; ranks end their group themselves."""
