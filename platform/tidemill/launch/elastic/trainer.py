"""The driver's side: Ray's trainer, with a controller that keeps processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api import data_parallel_trainer

from tidemill.launch.elastic.controller import JudgedFailures, KeptController, KeptScaling


class ElasticTrainer(TorchTrainer):
    """Ray's trainer, with a controller that keeps processes.

    Args:
        on_cluster: Whether there is an autoscaler to ask for nodes.
        options: Of `TorchTrainer`.
    """

    def __init__(self, *args: Any, on_cluster: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._on_cluster = on_cluster

    def _create_default_callbacks(self) -> list[Any]:
        found = super()._create_default_callbacks()
        return [one for one in found if not isinstance(one, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["scaling_policy"] = KeptScaling(self.scaling_config, on_cluster=self._on_cluster)
        options["failure_policy"] = JudgedFailures(FailureConfig())
        with _controller(KeptController):
            return super()._initialize_and_run_controller(**options)


@contextlib.contextmanager
def _controller(kind: type[KeptController]) -> Iterator[None]:
    """Let Ray's trainer start this kind; it has no argument for that."""
    usual = data_parallel_trainer.TrainController
    data_parallel_trainer.TrainController = kind  # type: ignore[misc]
    try:
        yield
    finally:
        data_parallel_trainer.TrainController = usual  # type: ignore[misc]
