"""Pool: processes between groups, as many as are wanted and none that is lost."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from tidemill.launch import pool as module
from tidemill.launch.pool import Pool, Process


class Actors:
    """Stands for Ray: actors are numbers, and start when they are told to."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.up: dict[int, Any] = {}
        self.killed: list[int] = []

    def spawn(self, node: str) -> tuple[int, int]:
        """Start one; it is its own reference."""
        self.nodes.append(node)
        return len(self.nodes) - 1, len(self.nodes) - 1

    def wait(self, references: list[int], **_: Any) -> tuple[list[int], list[int]]:
        """See `ray.wait`."""
        done = [one for one in references if one in self.up]
        return done, [one for one in references if one not in self.up]

    def get(self, reference: int) -> Any:
        """See `ray.get`."""
        if isinstance(self.up[reference], Exception):
            raise self.up[reference]
        return self.up[reference]

    def kill(self, actor: int) -> None:
        """See `ray.kill`."""
        self.killed.append(actor)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    """In the place of Ray."""
    found = Actors()
    monkeypatch.setattr(module, "ray", found)
    return found


@pytest.fixture
def pool(actors: Actors) -> Pool:
    """With nobody in it."""
    return Pool(actors.spawn, recycle_after=2)


def test_as_many_are_started_ahead_as_are_not_starting_yet(actors: Actors, pool: Pool) -> None:
    pool.start_ahead({"a": 1})
    pool.start_ahead({"a": 2, "b": 1})
    assert actors.nodes == ["a", "a", "b"]
    assert (pool.nodes, pool.warm) == ({"a": 2, "b": 1}, {})
    actors.up = {1: "metadata"}
    pool.gather()
    assert (pool.nodes, pool.warm) == ({"a": 2, "b": 1}, {"a": 1})


def test_a_node_where_a_start_failed_is_left_alone_for_a_while(
    actors: Actors, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.start_ahead({"a": 1})
    actors.up = {0: ActorDiedError()}
    pool.gather()
    assert (actors.killed, pool.nodes) == ([0], {})
    pool.start_ahead({"a": 1})
    assert actors.nodes == ["a"]
    later = module.time.monotonic() + module.SHUN_S + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    pool.start_ahead({"a": 1})
    assert actors.nodes == ["a", "a"]


def test_a_group_takes_the_warm_then_the_coming_then_new_ones(actors: Actors, pool: Pool) -> None:
    old = Process(actor=100, node="a", ready=100, metadata="old", joins=1)
    pool.park([old])
    pool.start_ahead({"b": 1})
    actors.up = {0: "coming", 1: "new"}
    taken = pool.take({"a": 2, "b": 1}, timeout_s=1.0)
    assert taken is not None
    assert [(one.node, one.metadata, one.joins) for one in taken] == [
        ("a", "old", 2),
        ("a", "new", 1),
        ("b", "coming", 1),
    ]
    assert not pool.nodes


def test_who_comes_too_late_is_let_go_and_the_others_stay(actors: Actors, pool: Pool) -> None:
    pool.park([Process(actor=100, node="a", ready=100, metadata="old", joins=1)])
    assert pool.take({"a": 1, "b": 1}, timeout_s=0.0) is None
    assert actors.killed == [0]
    assert pool.nodes == {"a": 1}


def test_a_process_is_not_kept_for_ever(actors: Actors, pool: Pool) -> None:
    pool.park([Process(actor=7, node="a", ready=7, metadata="", joins=2)])
    assert (pool.nodes, actors.killed) == ({}, [7])


def test_those_above_a_share_are_let_go_the_coldest_first(actors: Actors, pool: Pool) -> None:
    pool.park([Process(actor=7, node="a", ready=7, metadata="")])
    pool.start_ahead({"b": 1, "c": 1})
    pool.trim(2)
    assert (pool.nodes, actors.killed) == ({"a": 1, "b": 1}, [1])
    pool.trim(-1)
    assert not pool.nodes


def test_nothing_is_left_on_nodes_that_go_or_at_the_end(actors: Actors, pool: Pool) -> None:
    pool.park([Process(actor=node, node=node, ready=0, metadata="") for node in "ab"])  # type: ignore[arg-type]
    pool.start_ahead({"a": 1, "c": 1})
    pool.drop({"b", "c"})
    assert pool.nodes == {"b": 1, "c": 1}
    pool.close()
    assert not pool.nodes
    assert sorted(map(str, actors.killed)) == ["0", "1", "a", "b"]
