"""Ray Train's controller, where a steward decides."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import ray
from ray.train import ControllerError
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.util import bundle_to_remote_args
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tidemill.errors import TidemillError
from tidemill.launch.elastic.cluster import look, make_claims, stock
from tidemill.launch.elastic.group import KeptGroup, vitals_of
from tidemill.launch.elastic.worker import KeptWorker
from tidemill.launch.follower import note_retried
from tidemill.launch.hands import Hands
from tidemill.launch.policy import size_of
from tidemill.launch.pool import Pool
from tidemill.launch.steward import Steward
from tidemill.spec.base import from_plain
from tidemill.spec.run import RunSpec
from tidemill.storage import locate

PAUSE_S = 0.1
"""Seconds between looks while there is no group."""


class KeptScaling(ElasticScalingPolicy):
    """Asks the steward. What Ray's own policy knows of the nodes is up to 20 s old.

    Args:
        scaling_config: Ray's.
        on_cluster: Whether there is an autoscaler to ask for nodes.
    """

    steward: Steward
    spares = 0
    """Processes to ask nodes for beside the workers."""

    def __init__(self, scaling_config: Any, *, on_cluster: bool) -> None:
        super().__init__(scaling_config)
        self.on_cluster = on_cluster

    def after_controller_start(self, train_run_context: Any) -> None:
        """See `ScalingPolicy`."""
        if self.on_cluster:
            super().after_controller_start(train_run_context)

    def _get_num_workers_for_resource_request(self) -> int:
        return super()._get_num_workers_for_resource_request() + self.spares

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """See `ScalingPolicy`."""
        self._ask_for_nodes()
        return self._decided(self.steward.form())

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """See `ScalingPolicy`."""
        self._ask_for_nodes()
        vitals = vitals_of(worker_group_status.worker_statuses)
        return self._decided(self.steward.watch(vitals))

    def _ask_for_nodes(self) -> None:
        if self.on_cluster:
            self._maybe_send_resource_request()

    def _decided(self, formation: dict[str, int] | None) -> ScalingDecision:
        return self._get_resize_decision(size_of(formation)) if formation else NoopDecision()


class JudgedFailures(FailurePolicy):
    """Asks the steward whether a failure is worth another try."""

    steward: Steward
    verdict: TidemillError | None = None
    """What the run is to end with; None while it goes on."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """See `FailurePolicy`."""
        self.verdict = self.steward.failed(training_failed_error)
        return FailureDecision.RETRY if self.verdict is None else FailureDecision.RAISE


class KeptController(TrainController):
    """Ray Train's controller with a steward beside it."""

    def __init__(self, **options: Any) -> None:
        context = options["train_run_context"]
        scaling: KeptScaling = options["scaling_policy"]
        spec = from_plain(RunSpec, context.train_loop_config["spec"])
        need: dict[str, float] = scaling.scaling_config._resources_per_worker_not_none  # type: ignore[assignment]
        environment = WorkerGroup._get_worker_runtime_env(
            custom_runtime_env=context.run_config.worker_runtime_env
        )
        remote: Any = ray.remote(runtime_env=environment, **bundle_to_remote_args(need))(KeptWorker)

        def spawn(node: str) -> tuple[Any, Any]:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            actor = remote.options(scheduling_strategy=there).remote()
            ready = actor.warm_up.remote(context.train_loop_config, options["train_fn_ref"])
            return actor, ready

        pool = Pool(spawn, spec.scale.recycle_after)
        claims = None
        if spec.scale.elastic and scaling.on_cluster:
            claims = make_claims(f"{spec.storage}/{spec.name}", spec.scale)
        hands = Hands(
            look=functools.partial(look, need, spec.scale.labels),
            ask_to_leave=lambda process, stays: process.actor.ask_to_leave.remote(stays),
            ask_to_save=lambda process: process.actor.ask_to_save.remote(),
            tell=lambda process, kind, fields: process.actor.tell.remote(kind, fields),
            note_failure=functools.partial(note_retried, locate(spec.storage) / spec.name),
            stock=stock if scaling.on_cluster else lambda _process, _node: None,
            most=claims.most if claims else lambda *_: spec.scale.workers + spec.scale.spares,
            hold=claims.hold if claims else lambda _: None,
        )
        steward = Steward(spec, pool, hands)
        self._judged: JudgedFailures = options["failure_policy"]
        scaling.steward = self._judged.steward = steward
        scaling.spares = spec.scale.spares
        self.worker_group_cls = type("Group", (KeptGroup,), {"steward": steward, "pool": pool})
        self._pool, self._claims = pool, claims
        super().__init__(**options)

    async def _step(self) -> Any:
        before = self.get_state()
        result = await super()._step()
        if result.next_state is before:
            await asyncio.sleep(PAUSE_S)  # Ray would look again at once, and hear nobody meanwhile
        return result

    def _execute_failure_decision(
        self,
        failure_decision: Any,
        training_failed_error: Any,
        invoke_failure_decision_callbacks: bool = True,  # noqa: FBT001, FBT002 - Ray's
    ) -> Any:
        if self._judged.verdict is not None:
            training_failed_error = ControllerError(self._judged.verdict)
        result = super()._execute_failure_decision(
            failure_decision, training_failed_error, invoke_failure_decision_callbacks
        )
        if isinstance(result.next_state, RestartingState) and self._worker_group:
            self._shutdown_worker_group()
        return result

    async def _shutdown(self) -> Any:
        self.worker_group_cls.ending = True
        result = await super()._shutdown()
        self._pool.close()
        if self._claims is not None:
            self._claims.close()
        return result
