"""Copies in the memory of a real cluster's nodes: made, found, read, lost, left and removed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.kit.cluster import Nodes, local_cluster
from tidemill.checkpoint.blocks import digests_of
from tidemill.checkpoint.manifest import Manifest, StoredFile, encode
from tidemill.checkpoint.near import Near
from tidemill.errors import StorageError
from tidemill.launch import near, vaults
from tidemill.launch.near import NearMemory
from tidemill.launch.vaults import find_vaults, forget, open_vault, tend, tended
from tidemill.spec.progress import Cursor

CHUNK = 2**17  # beyond what Ray carries in the call itself
DATA = 5 * CHUNK // 2
PATIENCE_S = 20.0
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Snapshot:
    """What two ranks save of one step."""

    step: int
    attempt: int = 1

    @property
    def content(self) -> list[bytes]:
        """The file of each rank."""
        data = [bytes([self.step, rank]) * (DATA // 2) for rank in (0, 1)]
        return [held + digests_of(memoryview(held)) for held in data]

    @property
    def manifest(self) -> Manifest:
        files = {
            f"rank-{rank:05d}.bin": StoredFile(
                len(held), DATA, hashlib.sha256(held[DATA:]).hexdigest()
            )
            for rank, held in enumerate(self.content)
        }
        return Manifest(
            run="mill",
            digest="",
            identity={},
            corpus_digest="",
            cursor=Cursor(step=self.step, samples=self.step),
            world=2,
            strategy="ddp",
            precision="fp32",
            attempt=self.attempt,
            saved_at_s=0.0,
            origin={},
            metrics={},
            scalars={},
            tensors={},
            files=files,
        )

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def text(self) -> bytes:
        return encode(self.manifest)

    def keep(self, rank: int, ways: list[NearMemory]) -> int:
        """Keep one rank's file; the number of nodes that hold it."""
        return ways[rank].keep(self.name, f"rank-{rank:05d}.bin", memoryview(self.content[rank]))

    def keep_all(self, ways: list[NearMemory]) -> list[int]:
        """Keep both files and seal them."""
        nodes = [self.keep(rank, ways) for rank in (0, 1)]
        for way in ways:
            way.seal(self.name, self.text)
        return nodes

    def read(self, way: Near) -> list[bytes]:
        """Both files as they are held, by the way of whoever asks."""
        source = way.open(self.name)
        assert source.sizes() == {name: file.size for name, file in self.manifest.files.items()}
        found: list[bytes] = []
        for name in sorted(self.manifest.files):
            with source.open(name) as reader:
                found.append(reader.read())
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head and two nodes for the workers."""
    with local_cluster(2) as nodes:
        ray.init(
            nodes.address, namespace="drivers-own", log_to_driver=False, logging_level=logging.ERROR
        )
        try:
            yield nodes
        finally:
            ray.shutdown()


@pytest.fixture
def run(cluster: Nodes) -> Iterator[str]:
    """The key of a run of which nothing is there before and after."""
    key = f"run{next(NUMBERS)}"
    yield key
    forget(key)


def two_ranks(run: str, nodes: list[str], attempt: int = 1) -> list[NearMemory]:
    """The ways of two ranks on two nodes."""
    return [
        NearMemory(run, attempt=attempt, workers=nodes, rank=rank, budget_gib=0.01, chunk=CHUNK)
        for rank in (0, 1)
    ]


def wait_for(done: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def pid_of(actor: Any) -> int:
    pid: Any = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


def kill_vault(run: str, node: str) -> None:
    ray.kill(find_vaults(run)[node])
    wait_for(lambda: node not in find_vaults(run))


def test_a_snapshot_is_on_two_nodes_and_survives_either(cluster: Nodes, run: str) -> None:
    head, *nodes = cluster.ids
    ways = two_ranks(run, nodes)
    first = Snapshot(1)
    assert find_vaults(run) == {}
    assert first.keep(0, ways) == 2
    assert set(find_vaults(run)) == set(nodes)
    assert ways[0].find() == {}
    ways[0].seal(first.name, first.text)
    assert ways[0].find() == {}, "the other rank's file is nowhere"
    assert first.keep(1, ways) == 2
    assert ways[1].find() == {first.name: first.text}
    elsewhere = NearMemory(run, attempt=2, workers=[head], rank=0, budget_gib=1, chunk=CHUNK)
    for way in (*ways, elsewhere):
        assert first.read(way) == first.content

    second = Snapshot(2)
    second.keep(0, ways)
    assert list(ways[0].find()) == [first.name]
    second.keep(1, ways)
    assert list(ways[0].find()) == [first.name], "nobody said that it is all there"
    assert first.read(elsewhere) == first.content
    ways[0].seal(second.name, second.text)
    assert list(ways[0].find()) == [second.name]

    source = elsewhere.open(second.name)
    with source.open("rank-00001.bin") as reader:
        reader.read(10)
        kill_vault(run, nodes[0])
        reader.seek(0)
        assert reader.read() == second.content[1], "one reader goes on with the other copy"
    assert elsewhere.find() == {second.name: second.text}
    assert second.read(elsewhere) == second.content
    kill_vault(run, nodes[1])
    assert elsewhere.find() == {}
    with pytest.raises(StorageError, match=f"no node holds {second.name} any more"):
        elsewhere.open(second.name)


def test_who_died_between_two_seals_loses_nothing(cluster: Nodes, run: str) -> None:
    """Each rank on its own: what one sealed, the vaults of the other must not drop as unsealed."""
    ways = two_ranks(run, cluster.ids[1:])
    for way in ways:
        way._others = []
        way._other = list  # type: ignore[method-assign]
    assert Snapshot(1).keep_all(ways) == [1, 1]
    second = Snapshot(2)
    assert [second.keep(rank, ways) for rank in (0, 1)] == [1, 1]
    ways[0].seal(second.name, second.text)

    later = two_ranks(run, cluster.ids[1:], attempt=2)
    assert list(later[0].find()) == [second.name]
    third = Snapshot(3, attempt=2)
    third.keep(0, later)
    third.keep(1, later)
    assert second.read(later[0]) == second.content
    with pytest.raises(StorageError, match="attempt 1 is over"):
        Snapshot(4).keep(0, ways)


def test_the_budget_is_refused_by_name(cluster: Nodes, run: str) -> None:
    ways = two_ranks(run, cluster.ids[1:])
    small = NearMemory(
        run, attempt=1, workers=cluster.ids[1:], rank=0, budget_gib=0.0001, chunk=CHUNK
    )
    with pytest.raises(StorageError, match=r"^checkpoint\.near_gib: allows 0\.0001 GiB on a node"):
        Snapshot(1).keep(0, [small])
    assert Snapshot(1).keep_all(ways) == [2, 2]
    # Another vault may still have room: one copy is better than none.
    node = cluster.ids[1]
    vault = find_vaults(run)[node]
    assert not ray.get(vault.admit.remote(1, "step-0000000002-a0001", "big", 10**7, 2 * 10**7))
    assert Snapshot(2).keep(0, ways) == 1


class Rank:
    """A worker that keeps a snapshot, in the namespace of its driver."""

    def __init__(self, run: str, node: str) -> None:
        self.way = NearMemory(run, attempt=1, workers=[node], rank=0, budget_gib=0.01, chunk=CHUNK)

    def keep(self, snapshot: Snapshot) -> list[int]:
        return snapshot.keep_all([self.way, self.way])


def test_copies_outlive_the_worker_that_made_them(cluster: Nodes, run: str) -> None:
    node = cluster.ids[1]
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    actor: Any = ray.remote(num_cpus=0)(Rank)
    worker = actor.options(scheduling_strategy=strategy).remote(run, node)
    only = Snapshot(7)
    assert ray.get(worker.keep.remote(only), timeout=60) == [2, 2]
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RayActorError):
        ray.get(worker.keep.remote(only), timeout=60)
    later = NearMemory(run, attempt=2, workers=[node], rank=0, budget_gib=0.01, chunk=CHUNK)
    assert later.find() == {only.name: only.text}
    assert only.read(later) == only.content


def test_a_hung_vault_costs_a_copy_and_a_moment(
    cluster: Nodes, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, own, other = cluster.ids
    ways = two_ranks(run, [own, other])
    assert Snapshot(1).keep_all(ways) == [2, 2]
    pid = pid_of(find_vaults(run)[other])
    monkeypatch.setattr(near, "ANSWER_S", 2.0)
    monkeypatch.setattr(vaults, "ANSWER_S", 2.0)
    os.kill(pid, signal.SIGSTOP)
    try:
        second = Snapshot(2)
        assert second.keep(0, ways) == 1
        assert second.keep(0, ways) == 2
        assert set(find_vaults(run)) == {head, own, other}
        later = NearMemory(run, attempt=2, workers=[own], rank=0, budget_gib=0.01, chunk=CHUNK)
        assert list(later.find()) == [Snapshot(1).name]
        before_s = time.monotonic()
        assert Snapshot(1).read(later) == Snapshot(1).content
        assert time.monotonic() - before_s < 2.0, "who was silent is not asked again at once"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_lost_node_is_replaced(cluster: Nodes, run: str) -> None:
    own, lost = cluster.ids[1], cluster.add()
    ways = two_ranks(run, [own, lost])
    first = Snapshot(1)
    assert first.keep_all(ways) == [2, 2]
    cluster.lose(lost)
    later = NearMemory(run, attempt=2, workers=[own], rank=0, budget_gib=0.01, chunk=CHUNK)
    assert later.find() == {first.name: first.text}
    assert first.read(later) == first.content
    second = Snapshot(2)
    assert second.keep(0, ways) in {1, 2}, "its vault dies only when it notices"
    wait_for(lambda: second.keep(0, ways) == 2 and bool(set(find_vaults(run)) - {own, lost}))
    assert first.read(later) == first.content


def test_a_driver_leaves_nothing_when_its_run_ends(cluster: Nodes, run: str) -> None:
    head, *nodes = cluster.ids
    with contextlib.suppress(KeyError), tended(run, anew=True):
        Snapshot(1).keep_all(two_ranks(run, nodes))
        raise KeyError("the run failed")
    assert set(find_vaults(run)) == set(nodes)
    with tended(run, anew=False):
        assert list(two_ranks(run, nodes)[0].find()) == [Snapshot(1).name]
        # A node that got a copy once, when another one was shunned, and none since.
        astray = open_vault(run, head)
        ray.get(astray.admit.remote(1, "step-0000000000-a0001", "old", 1, 10))
        tend(run)
        wait_for(lambda: head not in find_vaults(run))
        assert set(find_vaults(run)) == set(nodes)
    wait_for(lambda: not find_vaults(run))


def test_a_new_run_of_an_old_name_finds_nothing(cluster: Nodes, run: str) -> None:
    node = cluster.ids[1]
    open_vault(run, node)
    with tended(run, anew=True):
        wait_for(lambda: not find_vaults(run))
    assert find_vaults(f"{run}0") == {}


def test_a_vault_that_nobody_asks_for_ends(cluster: Nodes, run: str) -> None:
    open_vault(run, cluster.ids[0], idle_s=0.2)
    assert set(find_vaults(run)) == {cluster.ids[0]}
    wait_for(lambda: not find_vaults(run))
