"""The kit must be trusted before what it tests: order, failure, death, timeout, nothing left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.kit.world import RankFailed, run_world
from tidemill.spec.progress import World


def _sum(world: World, factor: int) -> tuple[int, int, torch.Tensor]:
    total = torch.tensor([world.rank * factor])
    dist.all_reduce(total)
    return world.rank, torch.get_num_threads(), total


def _raise_on(world: World, culprit: int) -> None:
    if world.rank == culprit:
        raise ValueError("flood")
    dist.barrier()


def _die_on(world: World, culprit: int) -> None:
    if world.rank == culprit:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def _look_for_the_other(world: World) -> bool:
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    if world.rank == 1:
        return True
    time.sleep(0.5)
    return Path(f"/proc/{int(pids[1])}").exists()


def _sleep(_: World) -> None:
    time.sleep(3600)


def _environment(_: World) -> dict[str, str]:
    return dict(os.environ)


def test_results_come_by_rank_and_ranks_talk() -> None:
    results = run_world(_sum, 3, 10)
    assert [(rank, threads) for rank, threads, _ in results] == [(0, 1), (1, 1), (2, 1)]
    assert [int(total) for _, _, total in results] == [30, 30, 30]


def test_the_rank_that_raised_is_named_though_others_hang_in_a_collective() -> None:
    with pytest.raises(RankFailed, match="flood") as failure:
        run_world(_raise_on, 3, 2)
    assert failure.value.rank == 2


def test_a_killed_rank_is_named_though_its_peers_complain() -> None:
    with pytest.raises(RankFailed) as failure:
        run_world(_die_on, 3, 1)
    assert (failure.value.rank, failure.value.exit_code) == (1, -signal.SIGKILL)


def test_a_rank_that_is_done_stays_until_the_others_are() -> None:
    assert run_world(_look_for_the_other, 2) == [True, True]


def test_a_timeout_says_where_each_late_rank_was() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2[\s\S]*_sleep"):
        run_world(_sleep, 2, timeout_s=3)


def test_ranks_have_our_environment_and_what_launchers_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TASTE", "salt")
    before = dict(os.environ)
    ranks = run_world(_environment, 2, env={"COLOUR": "teal"})
    assert [rank["RANK"] + rank["LOCAL_RANK"] + rank["WORLD_SIZE"] for rank in ranks] == [
        "002",
        "112",
    ]
    assert all(
        rank["DS_ACCELERATOR"] == "cpu" and rank["COLOUR"] + rank["TASTE"] == "tealsalt"
        for rank in ranks
    )
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"]
    assert dict(os.environ) == before
