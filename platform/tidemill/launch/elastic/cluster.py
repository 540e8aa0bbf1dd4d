"""What a run sees of its cluster, and leaves there for others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.state import state as cluster_state
from ray.core.generated import (
    common_pb2,
    node_manager_pb2,
    node_manager_pb2_grpc,
    runtime_environment_pb2,
)
from ray.exceptions import RayError
from ray.experimental import internal_kv

from tidemill.launch.claims import Claims
from tidemill.launch.nodes import Node, usable
from tidemill.launch.pool import Process
from tidemill.spec.scale import ScaleSpec

CLAIMS = "tidemill-claims"
STOCK_S = 2.0
STOCKED_S = 3600
"""Seconds for which a raylet keeps a process that nobody has taken."""

log = logging.getLogger(__name__)


def look(
    need: Mapping[str, float], labels: Mapping[str, str], held: Mapping[str, int]
) -> dict[str, Node]:
    """The nodes that a run could use now.

    Args:
        need: Resources of one worker.
        labels: Conditions on a node.
        held: The run's workers by node.
    """
    return usable(
        ray.nodes(),
        cluster_state.available_resources_per_node(),
        held=held,
        draining=cluster_state.get_draining_nodes(),
        need=need,
        labels=labels,
    )


def stock(process: Process, node: Node) -> None:
    """Let a node's raylet keep a process ready that another worker can start in: 0.04 s, not 3.

    Nothing else fills that pool for actors: a process that ran a task serves tasks only. If it
    fails, a worker starts as slowly as ever. It is done beside the controller, which must hear of
    failures meanwhile.

    Args:
        process: A worker of the run, for its runtime environment; another one would not fit.
        node: Where.
    """
    threading.Thread(target=_stock, args=(process, node), daemon=True).start()


def _stock(process: Process, node: Node) -> None:
    try:
        wanted = node_manager_pb2.PrestartWorkersRequest(  # pyright: ignore[reportAttributeAccessIssue]
            language=common_pb2.PYTHON,  # pyright: ignore[reportAttributeAccessIssue]
            job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
            runtime_env_info=runtime_environment_pb2.RuntimeEnvInfo(  # pyright: ignore[reportAttributeAccessIssue]
                serialized_runtime_env=ray.get(process.actor.environment.remote(), timeout=STOCK_S)
            ),
            keep_alive_duration_secs=STOCKED_S,
            num_workers=1,
        )
        channel = init_grpc_channel(f"{node.address}:{node.port}")
        try:
            raylet = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
            raylet.PrestartWorkers(wanted, timeout=STOCK_S)
        finally:
            channel.close()
    except (RayError, grpc.RpcError) as error:
        log.warning("no process is kept ready on node %s: %s", node.id, error)


def make_claims(run: str, scale: ScaleSpec) -> Claims:
    """Let a run share the cluster with others, through the cluster's own key-value store."""

    def write(text: str) -> None:
        if text:
            internal_kv._internal_kv_put(run, text, namespace=CLAIMS)
        else:
            internal_kv._internal_kv_del(run, namespace=CLAIMS)

    def read() -> list[str]:
        keys = internal_kv._internal_kv_list("", namespace=CLAIMS)
        found = [internal_kv._internal_kv_get(key, namespace=CLAIMS) for key in keys]
        return [text.decode() for text in found if text]

    return Claims(run, scale, write=write, read=read)
