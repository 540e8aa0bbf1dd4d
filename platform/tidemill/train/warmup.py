"""Warm-up: what a process pays once is paid before others wait for it.

The first engine of a process imports, registers and caches for a second or more. A newcomer would
spend that time inside a group in which everybody else has state to go on from.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import replace

import torch
import torch.distributed as dist

from tidemill.spec.progress import World
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec, Fsdp2Spec
from tidemill.spec.training import CustomModelSpec, GptSpec
from tidemill.train.engine import Batch, build_engine
from tidemill.train.model import build_model
from tidemill.train.strategy.deepspeed_setup import load_deepspeed
from tidemill.train.teardown import Traces, dismantle

TINY = GptSpec(layers=1, heads=1, width=8)
VOCAB, SAMPLES, SEQUENCE = 8, 2, 4


def import_libraries(spec: RunSpec, device: str) -> None:
    """Import what the engine of `spec` is made of; to be called before there is a process group.

    Some of it makes the group that is there while it is imported the default of an argument, and
    so keeps that group, with its threads and sockets, for as long as the process lives.

    Args:
        spec: The run.
        device: Torch device string.
    """
    importlib.import_module("torch._dynamo")  # AdamW would, when it is made
    match spec.strategy:
        case Fsdp2Spec():
            importlib.import_module("tidemill.train.strategy.fsdp2")
        case DeepSpeedSpec():
            load_deepspeed(device)
    if isinstance(spec.model, CustomModelSpec):
        with contextlib.suppress(ImportError):  # who builds the model says what is wrong with it
            importlib.import_module(spec.model.factory.partition(":")[0])


def warm_up(spec: RunSpec, device: str) -> Traces:
    """Train a throw-away model for a step, alone, as `spec` would train its own, and dismantle it.

    The group is one of this process alone and opens no port. Random numbers drawn here are made up
    for by the seed that every model is built from.

    Args:
        spec: The run that this process will join.
        device: Torch device string.

    Returns:
        For `find_survivors`.
    """
    import_libraries(spec, device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    model = build_model(TINY, vocab=VOCAB, sequence=SEQUENCE, seed=spec.seed)
    world = World(device=device, local_rank=torch.device(device).index or 0)
    engine = build_engine(replace(spec, model=TINY), model, world)
    tokens = torch.arange(SAMPLES * SEQUENCE, device=device).view(SAMPLES, SEQUENCE) % VOCAB
    engine.accumulate(Batch(tokens, tokens, tokens[:, 0]), 1.0 / tokens.numel(), last=True)
    engine.step(spec.optim.lr)
    del model
    return dismantle(engine, failed=False)
