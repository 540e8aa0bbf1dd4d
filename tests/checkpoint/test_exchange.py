"""Talk between ranks: values by rank, and one rank's failure is everybody's."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.kit.world import run_world
from tidemill.checkpoint import exchange as module
from tidemill.checkpoint.exchange import Exchange
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError, TrainingError
from tidemill.spec.progress import World


def _gather(world: World) -> list[Any]:
    exchange = Exchange(world)
    long = {"rank": world.rank, "text": "ü" * 1000 * world.rank, "none": None}
    return [exchange.all_gather(long), exchange.first(lambda: [world.rank, "only"])]


def _fail(world: World, kinds: dict[int, type[Exception]]) -> list[tuple[str, str]]:
    exchange = Exchange(world)

    def work() -> int:
        if world.rank in kinds:
            raise kinds[world.rank](f"trouble\n on {world.rank}")
        return world.rank

    heard = []
    for attempt in (work, work):
        try:
            exchange.together(attempt)
        except CheckpointError as error:
            heard.append((type(error).__name__, str(error)))
    assert exchange.together(lambda: world.rank) == [0, 1, 2], "they can go on"
    return heard


def _beside_training(world: World) -> tuple[list[int], str]:
    exchange = Exchange(world)
    group = exchange._group
    assert isinstance(group, dist.ProcessGroup)
    assert group is not dist.group.WORLD
    return exchange.all_gather(world.rank), dist.get_backend(group)


def _trade(world: World) -> list[bool]:
    """Each rank sends each other one some bytes, cut in one way here and in another one there."""
    exchange = Exchange(world)

    def letter(sender: int, receiver: int) -> torch.Tensor:
        size = [0, 1, 63, 64, 65, 1000][(2 * sender + receiver) % 6]
        draw = torch.Generator().manual_seed(10 * sender + receiver)
        return torch.randint(0, 256, (size,), generator=draw).to(torch.uint8)

    others = [rank for rank in range(world.size) if rank != world.rank]
    right: list[bool] = []
    with mock.patch.object(module, "MESSAGE", 64):
        for cut in (1, 7, 100, 2000):
            boxes = {rank: torch.zeros_like(letter(rank, world.rank)) for rank in others}
            exchange.trade(
                {rank: letter(world.rank, rank).split(cut) for rank in others},
                {rank: boxes[rank].split(31 + world.rank) for rank in others},
            )
            right += [torch.equal(boxes[rank], letter(rank, world.rank)) for rank in others]
    if world.rank < 2:  # 2 has no part in it
        into = torch.zeros(9, dtype=torch.uint8)
        exchange.trade({0: [into + 1]} if world.rank else {}, {} if world.rank else {1: [into]})
        right.append(bool(into.all()) is (world.rank == 0))
    return right


def _close_while_others_wait(world: World) -> tuple[str, bool]:
    """Rank 2 does not come; threads of 0 and 1 wait for it, 0 for another reason than 1."""
    exchange = Exchange(world)
    exchange.all_gather(None)
    problems: list[str] = []

    def wait() -> None:
        try:
            exchange.all_gather(world.rank)
        except Exception:  # noqa: BLE001 - what it is depends on who closed
            problems.append("freed")

    thread = threading.Thread(target=wait, daemon=True)
    if world.rank < 2:
        thread.start()
    dist.barrier()
    time.sleep(0.1)  # so that they do wait; the other way round, they fail even sooner
    if world.rank != 1:
        exchange.close()
    if world.rank < 2:
        thread.join(30)
    dist.barrier()
    exchange.close()
    exchange.close()
    with pytest.raises(TrainingError, match="the attempt has ended"):
        exchange.all_gather(None)
    return "".join(problems), thread.is_alive()


def _close_after_all_groups(world: World) -> None:
    exchange = Exchange(world)
    dist.barrier()
    dist.destroy_process_group()
    exchange.close()


def _close_at_once(world: World) -> None:
    for _ in range(20):
        exchange = Exchange(world)
        exchange.close()
        dist.barrier()


def test_a_rank_that_closes_at_once_fails_none_that_is_still_connecting() -> None:
    run_world(_close_at_once, 4)


def test_every_rank_gets_every_value_whatever_its_length() -> None:
    for gathered, only in run_world(_gather, 3):
        assert [value["rank"] for value in gathered] == [0, 1, 2]
        assert [len(value["text"]) for value in gathered] == [0, 1000, 2000]
        assert only == [0, "only"]


def test_one_rank_needs_no_process_group() -> None:
    exchange = Exchange(World())
    assert not dist.is_initialized()
    assert exchange.all_gather({"a": 1}) == [{"a": 1}]
    assert exchange.first(lambda: 3) == 3
    with pytest.raises(CheckpointError, match=r"^OSError: deep water$") as error:
        exchange.together(_drown)
    assert isinstance(error.value.__cause__, OSError)


def _drown() -> None:
    raise OSError("deep water")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({1: StorageError}, ("CheckpointError", "rank 1: trouble on 1")),
        ({2: ValueError}, ("CheckpointError", "rank 2: ValueError: trouble on 2")),
        (
            {0: OSError, 1: OSError},
            ("CheckpointError", "rank 0: OSError: trouble on 0 (and 1 more rank)"),
        ),
        ({0: StorageError, 1: CorruptCheckpoint}, ("CorruptCheckpoint", "trouble on 1")),
    ],
)
def test_a_failure_is_the_same_on_every_rank(
    kinds: dict[int, type[Exception]], expected: tuple[str, str]
) -> None:
    assert run_world(_fail, 3, kinds) == [[expected, expected]] * 3


def test_bytes_arrive_however_they_are_cut() -> None:
    assert run_world(_trade, 3) == [[True] * 9, [True] * 9, [True] * 8]


def test_who_closes_sets_free_who_waits() -> None:
    freed = ("freed", False)
    assert run_world(_close_while_others_wait, 3) == [freed, freed, ("", False)]


def test_closing_is_possible_when_all_groups_are_gone() -> None:
    run_world(_close_after_all_groups, 2)


def test_it_has_a_gloo_group_of_its_own() -> None:
    assert run_world(_beside_training, 2) == [([0, 1], "gloo")] * 2
