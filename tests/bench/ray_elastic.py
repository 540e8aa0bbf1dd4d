"""The rival of `recovery`: Ray Train's own elasticity around the same engine, model and data.

Run by the benchmark, as `python ray_elastic.py SPEC.json shipped|tuned`, on the cluster that
RAY_ADDRESS names. A checkpoint every ten steps, as Ray Train recommends it: each rank's share to a
directory that `report` takes. Prints nothing; `steps.jsonl` beside the spec tells of every step
that all ranks have taken.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

EVERY = 10


def train_fn(config: dict[str, Any]) -> None:
    """One worker: the loop of `tidemill.train.loop`, with Ray's checkpoints."""
    import ray.train
    import torch
    import torch.distributed as dist
    from ray.train import Checkpoint

    from tests.kit.training import RaggedStream, tiny_run
    from tidemill.plan.batch import make_batch_plan
    from tidemill.spec.progress import World
    from tidemill.train.engine import build_engine
    from tidemill.train.loop import to_device
    from tidemill.train.model import build_model
    from tidemill.train.ranks import agree

    torch.set_num_threads(1)
    context = ray.train.get_context()
    world = World(rank=context.get_world_rank(), size=context.get_world_size())
    spec = tiny_run(config["strategy"])
    model = build_model(replace(spec.model, **config["model"]), vocab=61, sequence=24, seed=1)
    engine = build_engine(spec, model, world)
    step = 0
    found = ray.train.get_checkpoint()
    if found is not None:
        with found.as_directory() as place:
            held = [torch.load(path, mmap=True) for path in sorted(Path(place).glob("*.pt"))]
        step = held[0]["step"]
        wanted = engine.wanted()
        for name, fragment in wanted.tensors.items():
            whole = torch.empty(fragment.numel)
            for part in held:
                for start, data in part["tensors"].get(name, []):
                    whole[start : start + data.numel()] = data
            for piece in fragment.pieces:
                piece.data.copy_(whole[piece.start : piece.start + piece.data.numel()])
        wanted.scalars.update(held[0]["scalars"])
        engine.restore(wanted)
    stream, size = RaggedStream(), config["samples"]
    slots = make_batch_plan(size, size, world.size).slots(world.rank)
    while True:
        for number, slot in enumerate(slots, start=1):
            batch = to_device(stream.take(step * size, slot), world)
            engine.accumulate(batch, 1.0 / size, last=number == len(slots))
        engine.step(1e-3)
        step += 1
        agree(world, 1)
        if world.rank == 0:
            told = {"at_s": time.time(), "step": step, "world": world.size}
            with Path(config["steps"]).open("a") as log:
                log.write(json.dumps(told) + "\n")
        time.sleep(config["pause_s"])
        if step % EVERY == 0:
            state = engine.state()
            tensors = {
                name: [(piece.start, piece.data) for piece in fragment.pieces]
                for name, fragment in state.tensors.items()
            }
            with tempfile.TemporaryDirectory() as place:
                torch.save(
                    {"step": step, "scalars": state.scalars, "tensors": tensors},
                    f"{place}/{world.rank}.pt",
                )
                ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(place))
            dist.barrier()


def main() -> None:
    """Start the trainer and wait to be killed."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config, arm = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    ray.init(address="auto", log_to_driver=False)
    if arm == "tuned":
        _tune()
    TorchTrainer(
        train_fn,
        train_loop_config=config,
        torch_config=TorchConfig(backend="gloo", timeout_s=30),
        scaling_config=ScalingConfig(
            num_workers=(1, config["workers"]), elastic_resize_monitor_interval_s=5
        ),
        run_config=RunConfig(
            name=f"rival-{arm}",
            storage_path=str(Path(config["steps"]).parent),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


def _tune() -> None:
    """A coordinator that looks at the nodes every second, and not at those that leave."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def nodes() -> list[Any]:
        import ray
        from ray._private.state import state

        draining = state.get_draining_nodes()
        return [node for node in ray.nodes() if node["NodeID"] not in draining]

    class Fresh(coordinator._AutoscalingCoordinatorActor):
        TICK_INTERVAL_S = 1

        def __init__(self) -> None:
            super().__init__(get_cluster_nodes=nodes)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    fresh = (
        ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Fresh)
        .options(
            name="AutoscalingCoordinator",
            namespace="AutoscalingCoordinator",
            get_if_exists=True,
            lifetime="detached",
            scheduling_strategy=here,
        )
        .remote()
    )
    ray.get(fresh.__ray_ready__.remote())  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    main()
