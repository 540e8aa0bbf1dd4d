"""Meeting: how ranks that know of each other become a process group."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

MEET_S = 30.0
"""Seconds that the ranks of a group have to find one another."""


def open_store(address: str) -> dist.TCPStore:
    """Open the place where ranks meet, on any free port; rank 0 does, before anybody comes.

    A rank that came earlier would try again only most of a second later.

    Args:
        address: Of this machine, as other ranks reach it.
    """
    return dist.TCPStore(
        address,
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=dt.timedelta(seconds=MEET_S),
    )


def form_group(
    rank: int, size: int, meeting: Mapping[str, Any], store: dist.TCPStore | None = None
) -> None:
    """Make the process group of a new group of workers; `teardown.dismantle` ends it.

    Args:
        rank: Of this process.
        size: Of the group.
        meeting: `address` and `port` of rank 0's store, `backend` and `timeout_s` of collectives.
        store: That one, on rank 0.
    """
    if meeting["backend"] == "nccl":
        # 1, Ray's choice, and torch's own would end the process where a peer was lost.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting["address"], str(meeting["port"])
    if store is None:
        patience = dt.timedelta(seconds=MEET_S)
        store = dist.TCPStore(
            meeting["address"], meeting["port"], is_master=False, timeout=patience
        )
    dist.init_process_group(
        meeting["backend"],
        store=store,
        rank=rank,
        world_size=size,
        timeout=dt.timedelta(seconds=meeting["timeout_s"]),
    )
