"""Talk between ranks: values by rank, and one rank's failure is everybody's."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from tests.kit.world import run_world
from tidemill.checkpoint.exchange import Exchange
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
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


def test_it_has_a_gloo_group_of_its_own() -> None:
    assert run_world(_beside_training, 2) == [([0, 1], "gloo")] * 2
