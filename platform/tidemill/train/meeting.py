"""Meeting: how ranks that know of each other become a process group."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

MEET_S = 30.0
"""Seconds that the ranks of a group have to find one another."""


def form_group(rank: int, size: int, meeting: Mapping[str, Any]) -> None:
    """Make the process group of a new group of workers; `teardown.dismantle` ends it.

    Args:
        rank: Of this process.
        size: Of the group.
        meeting: `address` and a free `port` of rank 0, `backend` and `timeout_s` of collectives.
    """
    if meeting["backend"] == "nccl":
        # 1, Ray's choice, and torch's own would end the process where a peer was lost.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting["address"], str(meeting["port"])
    store = dist.TCPStore(
        meeting["address"],
        meeting["port"],
        size,
        is_master=rank == 0,
        timeout=dt.timedelta(seconds=MEET_S),
    )
    dist.init_process_group(
        meeting["backend"],
        store=store,
        rank=rank,
        world_size=size,
        timeout=dt.timedelta(seconds=meeting["timeout_s"]),
    )
