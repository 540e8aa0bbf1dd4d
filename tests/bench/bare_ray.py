"""The main job's first step without Tidemill: one file, `TorchTrainer` and DeepSpeed, no platform.

What anyone would write for it: each worker reads the standard library's sources into one array,
wraps the same GPT in DeepSpeed ZeRO-2 in bf16 and steps. Prints the time of the first step.
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

SIZE, MICRO, SEQUENCE, WORLD = (int(text) for text in sys.argv[1:5])


def train_worker(config: dict[str, Any]) -> None:
    """One step on one rank."""
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import numpy as np
    import torch
    from torch.nn import functional

    from tidemill.spec.training import GptSpec
    from tidemill.train.model import build_model

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", dist_init_required=False)
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"site-packages", "test", "tests"} & set(path.parts)
    ]
    tokens = np.concatenate([np.frombuffer(path.read_bytes(), np.uint8) for path in files])
    model = build_model(GptSpec(**config["model"]), vocab=257, sequence=config["sequence"], seed=1)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
        config={
            "train_micro_batch_size_per_gpu": config["micro"],
            "gradient_accumulation_steps": config["size"] // config["micro"] // config["world"],
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 2, "reduce_bucket_size": 5_000_000},
            "bf16": {"enabled": True},
        },
        dist_init_required=False,
    )
    loss = torch.zeros(())
    random = np.random.default_rng(ray.train.get_context().get_world_rank())
    for _ in range(config["size"] // config["micro"] // config["world"]):
        starts = random.integers(0, len(tokens) - config["sequence"] - 1, config["micro"])
        rows = np.stack([tokens[a : a + config["sequence"] + 1] for a in starts]).astype(np.int64)
        batch = torch.from_numpy(rows)
        logits = engine(batch[:, :-1], torch.from_numpy(starts))
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        engine.backward(loss)
        engine.step()
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["out"]).write_text(f"{float(loss.detach())} {time.time()}")


if __name__ == "__main__":
    ray.init(address="local", num_cpus=WORLD, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "first-step"
        TorchTrainer(
            train_worker,
            train_loop_config={
                "model": {"layers": 4, "heads": 2, "width": 128},
                "size": SIZE,
                "micro": MICRO,
                "sequence": SEQUENCE,
                "world": WORLD,
                "out": str(out),
            },
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=WORLD),
            run_config=RunConfig(storage_path=scratch),
        ).fit()
        print("first step at", out.read_text().split()[1])
