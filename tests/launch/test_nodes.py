"""Which nodes could hold workers: Ray's word is checked against the raylet's own port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tidemill.launch.nodes import matches, usable


@pytest.fixture
def raylet() -> Iterator[int]:
    """A port that accepts connections."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def _node(name: str, port: int, *, alive: bool = True, **labels: str) -> dict[str, object]:
    return {
        "NodeID": name,
        "Resources": {"CPU": 8.0, "GPU": 4.0},
        "NodeManagerAddress": "127.0.0.1",
        "NodeManagerPort": port,
        "Alive": alive,
        "Labels": labels,
    }


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_node_counts_what_is_free_and_what_this_run_holds_there(raylet: int) -> None:
    found = usable(
        [_node("a", raylet), _node("b", raylet), _node("full", raylet)],
        {"a": {"CPU": 3.0, "GPU": 1.0}, "b": {"CPU": 8.0, "GPU": 4.0}, "full": {"CPU": 1.9}},
        held={"a": 2},
        draining={},
        need={"CPU": 2.0, "GPU": 1.0, "memory": 0.0},
        labels={},
    )
    assert {node.id: node.slots for node in found.values()} == {"a": 3, "b": 4, "full": 0}
    assert {node.capacity for node in found.values()} == {4}


def test_a_node_that_is_too_small_is_left_out(raylet: int) -> None:
    assert not usable(
        [_node("a", raylet)],
        {"a": {"CPU": 8.0}},
        held={},
        draining={},
        need={"CPU": 9.0},
        labels={},
    )


def test_tenths_of_a_processor_add_up(raylet: int) -> None:
    found = usable(
        [_node("a", raylet)],
        {"a": {"CPU": 1.0}},
        held={},
        draining={},
        need={"CPU": 0.1},
        labels={},
    )
    assert found["a"].slots == 10


def test_a_node_whose_raylet_is_gone_is_left_out_though_ray_calls_it_alive(raylet: int) -> None:
    nodes = [_node("a", raylet), _node("gone", _closed_port()), _node("b", raylet, alive=False)]
    free = {name: {"CPU": 1.0} for name in ("a", "gone", "b")}
    assert list(usable(nodes, free, held={}, draining={}, need={"CPU": 1.0}, labels={})) == ["a"]


def test_a_node_that_leaves_says_when(raylet: int) -> None:
    nodes = [_node("soon", raylet), _node("some time", raylet), _node("stays", raylet)]
    free = {str(node["NodeID"]): {"CPU": 1.0} for node in nodes}
    draining = {"soon": 1_700_000_000_500, "some time": 0}
    found = usable(nodes, free, held={}, draining=draining, need={"CPU": 1.0}, labels={})
    assert {node.id: node.leaves_at_s for node in found.values()} == {
        "soon": 1_700_000_000.5,
        "some time": 0.0,
        "stays": None,
    }


@pytest.mark.parametrize(
    ("condition", "value", "met"),
    [
        ("H100", "H100", True),
        ("H100", "A100", False),
        ("H100", None, False),
        ("!spot", "spot", False),
        ("!spot", "on-demand", True),
        ("!spot", None, True),
        ("in(H100, H200)", "H200", True),
        ("in(H100, H200)", "A100", False),
        ("!in(eu, us)", "eu", False),
        ("!in(eu, us)", "asia", True),
    ],
)
def test_a_label_meets_rays_conditions(condition: str, value: str | None, met: bool) -> None:
    labels = {"other": "x"} | ({} if value is None else {"key": value})
    assert matches(labels, {"key": condition}) is met


def test_only_nodes_with_the_labels_are_used(raylet: int) -> None:
    nodes = [_node("a", raylet, tier="spot"), _node("b", raylet, tier="on-demand")]
    free = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    assert list(
        usable(nodes, free, held={}, draining={}, need={"CPU": 1.0}, labels={"tier": "!spot"})
    ) == ["b"]
