"""On a cluster, data go only where nodes say that they are trusted so far."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ray

from tests.kit.training import tiny_run
from tidemill.launch.near import NearMemory
from tidemill.launch.nodes import matches
from tidemill.launch.trust import TIER, among_trusted, tier_of
from tidemill.spec.placement import PlacementSpec, Tier
from tidemill.spec.run import RunSpec


def run_of(run: Tier, data: Tier) -> RunSpec:
    spec = tiny_run()
    return replace(spec, placement=PlacementSpec(tier=run), data=replace(spec.data, tier=data))


@pytest.mark.parametrize("run", Tier)
@pytest.mark.parametrize("data", Tier)
@pytest.mark.parametrize("node", [*Tier, None])
def test_a_node_is_used_if_it_says_enough(run: Tier, data: Tier, node: Tier | None) -> None:
    spec = run_of(run, data)
    least = max(run.rank, data.rank)
    assert tier_of(spec).rank == least
    labels = {} if node is None else {TIER: node.value}
    allowed = least == 0 or (node is not None and node.rank >= least)
    assert matches(labels, among_trusted(spec).scale.labels) is allowed


def test_other_conditions_stay() -> None:
    spec = run_of(Tier.secure, Tier.community)
    spec = replace(spec, scale=replace(spec.scale, labels={"kind": "H100"}))
    assert among_trusted(spec).scale.labels == {"kind": "H100", TIER: "in(secure)"}
    assert among_trusted(spec).digest() == spec.digest()


def test_copies_in_memory_keep_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, Any]] = [
        {"NodeID": "own", "Alive": True, "Labels": {TIER: "secure"}},
        {"NodeID": "a-stranger", "Alive": True, "Labels": {}},
        {"NodeID": "managed", "Alive": True, "Labels": {TIER: "managed"}},
        {"NodeID": "secure", "Alive": True, "Labels": {TIER: "secure"}},
        {"NodeID": "gone", "Alive": False, "Labels": {TIER: "secure"}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    labels = among_trusted(run_of(Tier.secure, Tier.community)).scale.labels
    usual: dict[str, Any] = {"attempt": 1, "workers": ["own"], "rank": 0, "budget_gib": 1.0}
    assert NearMemory("run", **usual, labels=labels)._other() == ["secure"]
    assert NearMemory("run", **usual)._other() == ["a-stranger"]
