"""Meeting: how ranks that know of each other become a process group."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from tidemill.errors import TrainingError

MEET_S = 30.0
"""Seconds that the ranks of a group have to find one another."""
CONNECT_S = 3.0
"""Seconds to reach rank 0, whose store is open before anybody hears of it."""
LOOK_S = 0.005


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
    rank: int,
    size: int,
    meeting: Mapping[str, Any],
    store: dist.TCPStore | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Make the process group of a new group of workers; `teardown.dismantle` ends it.

    Args:
        rank: Of this process.
        size: Of the group.
        meeting: `address` and `port` of rank 0's store, `backend` and `timeout_s` of collectives.
        store: That one, on rank 0.
        cancelled: Whether nobody needs the group any more, because a rank was lost on its way.

    Raises:
        TrainingError: A rank did not come, or rank 0 is gone.
    """
    if meeting["backend"] == "nccl":
        # 1, Ray's choice, and torch's own would end the process where a peer was lost.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting["address"], str(meeting["port"])
    try:
        if store is None:
            patience = dt.timedelta(seconds=CONNECT_S)
            store = dist.TCPStore(
                meeting["address"], meeting["port"], is_master=False, timeout=patience
            )
        _wait_for_all(store, rank, size, cancelled)
    except dist.DistError as error:
        raise TrainingError(f"rank {rank} cannot reach rank 0: {error}") from error
    store.set_timeout(dt.timedelta(seconds=MEET_S))
    dist.init_process_group(
        meeting["backend"],
        store=store,
        rank=rank,
        world_size=size,
        timeout=dt.timedelta(seconds=meeting["timeout_s"]),
    )


def _wait_for_all(
    store: dist.TCPStore, rank: int, size: int, cancelled: Callable[[], bool]
) -> None:
    """Wait until every rank is here: making a group cannot be broken off."""
    store.set(f"here/{rank}", "")
    missing = [f"here/{number}" for number in range(size)]
    until_s = time.monotonic() + MEET_S
    while not store.check(missing):
        if cancelled():
            raise TrainingError("the group is given up: a rank was lost on its way to it")
        if time.monotonic() > until_s:
            raise TrainingError(f"a rank did not come to its group within {MEET_S:g} s")
        time.sleep(LOOK_S)
