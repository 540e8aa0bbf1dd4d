"""What Tidemill uses of Ray's private parts, held against the Ray that is installed.

A release of Ray that changes one of them fails here, with its name, and not in somebody's run.
"""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import requires, version
from typing import Any

import pytest
from packaging.requirements import Requirement
from ray._private.state import GlobalState
from ray.experimental import internal_kv
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailurePolicy
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner
from ray.train.v2._internal.execution.worker_group.worker import (
    RayTrainWorker,
    Worker,
    WorkerStatus,
)
from ray.train.v2._internal.util import ObjectRefWrapper
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tidemill.launch.elastic import controller, trainer, worker


def test_ray_is_pinned_exactly() -> None:
    (pin,) = [
        one for line in requires("tidemill") or () if (one := Requirement(line)).name == "ray"
    ]
    assert str(pin.specifier) == f"=={version('ray')}"


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (WorkerGroup, "create", ["train_run_context", "worker_group_context", "callbacks"]),
        (WorkerGroup, "_start_impl", ["self", "worker_group_state_builder"]),
        (WorkerGroup, "_init_train_context", ["self", "workers", "sync_actor"]),
        (WorkerGroup, "_decorate_worker_log_file_paths", ["workers"]),
        (WorkerGroup, "_poll_workers_and_collect_errors", ["self", "timeout"]),
        (WorkerGroup, "_get_worker_runtime_env", ["custom_runtime_env"]),
        (WorkerGroup, "_clear_state", ["self"]),
        (WorkerGroup, "_assert_active", ["self"]),
        (WorkerGroup, "_assert_inactive", ["self"]),
        (WorkerGroup, "shutdown", ["self"]),
        (WorkerGroup, "abort", ["self"]),
        (TrainController, "_step", ["self"]),
        (TrainController, "_shutdown", ["self"]),
        (TrainController, "_shutdown_worker_group", ["self"]),
        (FailurePolicy, "make_decision", ["self", "training_failed_error"]),
        (ElasticScalingPolicy, "_get_resize_decision", ["self", "num_workers"]),
        (ElasticScalingPolicy, "_maybe_send_resource_request", ["self"]),
        (ElasticScalingPolicy, "_get_num_workers_for_resource_request", ["self"]),
        (ObjectRefWrapper, "get", ["self"]),
        (ElasticScalingPolicy, "after_controller_start", ["self", "train_run_context"]),
        (
            ElasticScalingPolicy,
            "make_decision_for_running_worker_group",
            ["self", "worker_group_state", "worker_group_status"],
        ),
        (_TorchBackend, "on_start", ["self", "worker_group", "backend_config"]),
        (RayTrainWorker, "poll_status", ["self"]),
        (RayTrainWorker, "get_metadata", ["self"]),
        (RayTrainWorker, "run_train_fn", ["self", "train_fn_ref"]),
        (DataParallelTrainer, "_create_default_callbacks", ["self"]),
        (GlobalState, "get_draining_nodes", ["self"]),
        (GlobalState, "available_resources_per_node", ["self"]),
    ],
)
def test_what_is_used_takes_what_it_is_given(owner: Any, name: str, parameters: list[str]) -> None:
    assert (
        list(
            inspect.signature(
                inspect.getattr_static(owner, name).__func__
                if isinstance(inspect.getattr_static(owner, name), staticmethod | classmethod)
                else getattr(owner, name)
            ).parameters
        )[-len(parameters) :]
        == parameters
    )


def test_a_group_is_what_is_made_of_it() -> None:
    assert {field.name for field in dataclasses.fields(WorkerGroupState)} == {
        "start_time",
        "placement_group_handle",
        "workers",
        "sync_actor",
    }
    assert {field.name for field in dataclasses.fields(Worker)} >= {
        "actor",
        "metadata",
        "resources",
        "distributed_context",
    }


def test_a_status_takes_vitals_with_it() -> None:
    told = WorkerStatus(running=True)
    assert worker.KeptStatus(**vars(told), vitals=None).running


def test_the_controller_starts_the_groups_of_its_own_class() -> None:
    assert "worker_group_cls" in inspect.getsource(TrainController._start_worker_group)
    assert inspect.signature(TrainController._execute_failure_decision).parameters.keys() >= {
        "failure_decision",
        "training_failed_error",
    }


def test_the_trainer_starts_the_controller_that_its_module_names() -> None:
    source = inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    assert "(TrainController)" in source
    usual = data_parallel_trainer.TrainController
    with trainer._controller(controller.KeptController):
        assert data_parallel_trainer.TrainController is controller.KeptController
    assert data_parallel_trainer.TrainController is usual


def test_a_thread_that_trains_can_be_waited_for() -> None:
    runner = ThreadRunner()
    assert runner._thread is None
    runner.run(lambda: 7)
    assert runner._thread is not None
    runner._thread.join(10)
    assert runner.get_return_value() == 7


def test_the_clusters_store_is_there() -> None:
    for verb in ("put", "get", "del", "list"):
        assert (
            "namespace"
            in inspect.signature(getattr(internal_kv, f"_internal_kv_{verb}")).parameters
        )
