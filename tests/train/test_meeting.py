"""How ranks meet: all of them or none, and nobody waits for one who was lost on the way."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.kit.world import run_world
from tidemill.errors import TrainingError
from tidemill.spec.progress import World
from tidemill.train import meeting as module
from tidemill.train.meeting import form_group, open_store


def _meeting(port: int) -> dict[str, Any]:
    return {"address": "127.0.0.1", "port": port, "backend": "gloo", "timeout_s": 30}


def _meet_again(world: World) -> float:
    """Leave the group of this world for one that met at a store; the sum of its ranks."""
    store = open_store("127.0.0.1") if world.rank == 0 else None
    port = [store.port if store else 0]
    dist.broadcast_object_list(port)
    dist.destroy_process_group()
    form_group(world.rank, world.size, _meeting(port[0]), store)
    total = torch.tensor([float(world.rank)])
    dist.all_reduce(total)
    return float(total)


def test_ranks_form_a_group() -> None:
    assert run_world(_meet_again, 3) == [3.0, 3.0, 3.0]


def test_nobody_waits_for_a_rank_that_was_lost_on_its_way() -> None:
    given_up = threading.Event()
    threading.Timer(0.2, given_up.set).start()
    store = open_store("127.0.0.1")
    began_s = time.monotonic()
    with pytest.raises(TrainingError, match="given up: a rank was lost"):
        form_group(0, 2, _meeting(store.port), store, given_up.is_set)
    assert time.monotonic() - began_s < module.MEET_S / 3
    assert not dist.is_initialized()


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MEET_S", 0.1)
    store = open_store("127.0.0.1")
    with pytest.raises(TrainingError, match=r"did not come to its group within 0\.1 s"):
        form_group(0, 2, _meeting(store.port), store)


def test_a_store_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    port = open_store("127.0.0.1").port  # and closed again
    with pytest.raises(TrainingError, match="rank 1 cannot reach rank 0"):
        form_group(1, 2, _meeting(port))
