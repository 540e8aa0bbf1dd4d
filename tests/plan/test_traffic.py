"""What ranks exchange is what each strategy's papers and code say, over links that are known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spec.test_run import RUN
from tidemill.plan.gpus import all_gpus
from tidemill.plan.traffic import (
    NETWORK_GBIT_S,
    Traffic,
    count_nodes,
    link_bytes_s,
    make_traffic,
)
from tidemill.spec.placement import Network
from tidemill.spec.run import Reproducibility
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.strategy import DdpSpec, DeepSpeedSpec, Fsdp2Spec, StrategySpec
from tidemill.spec.training import BatchSpec, PrecisionKind, PrecisionSpec
from tidemill.train.reduce import TreeSum

SPEC = replace(
    RUN, precision=PrecisionSpec(kind=PrecisionKind.bf16), scale=ScaleSpec(gpus_per_worker=1)
)
MANY = 10**10


def traffic(strategy: StrategySpec, world: int = 8, slots: int = 1) -> Traffic:
    spec = replace(SPEC, strategy=strategy)
    return make_traffic(spec, world=world, slots=slots, parameters=MANY)


@pytest.mark.parametrize(
    ("strategy", "once", "each_slot"),
    [
        (DdpSpec(), 8, 0),
        (Fsdp2Spec(), 4, 4),
        (Fsdp2Spec(reshard_after_forward=False), 4, 2),
        (DeepSpeedSpec(stage=1), 6, 0),
        (DeepSpeedSpec(stage=2), 2, 4),
        (DeepSpeedSpec(stage=3), 0, 5.9),
    ],
)
def test_bytes_per_parameter(strategy: StrategySpec, once: float, each_slot: float) -> None:
    # ZeRO, section 7: 2 elements sent per parameter, 3 if parameters are sharded; in bf16, but for
    # DDP and FSDP2, which reduce in fp32. ZeRO-3 still holds the last 5 % when backward begins.
    for slots in (1, 3):
        sent = traffic(strategy, 8, slots).ring_bytes / MANY * 8 / 7
        assert sent == pytest.approx(once + slots * each_slot)


def test_a_small_model_is_gathered_once_by_zero_3() -> None:
    spec = replace(SPEC, strategy=DeepSpeedSpec(stage=3))
    found = make_traffic(spec, world=2, slots=1, parameters=10**8)
    assert found.ring_bytes == 4 * 10**8 / 2


@given(world=st.integers(1, 512))
def test_one_rank_sends_nothing_and_more_send_less_than_twice(world: int) -> None:
    alone, found = traffic(DdpSpec(), 1), traffic(DdpSpec(), world)
    assert alone.seconds(1, 1.0, 1.0) == 0
    assert alone.ring_bytes <= found.ring_bytes < 2 * traffic(DdpSpec(), 2).ring_bytes + 1


def test_what_hides_is_what_overlaps() -> None:
    assert traffic(DdpSpec()).hideable == pytest.approx(2 / 3)
    assert traffic(DdpSpec(), slots=4).hideable == pytest.approx(1 / 6)  # in the last slot alone
    assert traffic(Fsdp2Spec()).hideable == 1
    assert [traffic(DeepSpeedSpec(stage=stage)).hideable for stage in (1, 2, 3)] == [0, 0, 0]
    # Reductions begin in backward, gathers of parameters in forward too.
    assert traffic(DeepSpeedSpec(stage=2, overlap=True)).hideable == pytest.approx(2 / 3)
    assert traffic(DeepSpeedSpec(stage=3, overlap=True)).hideable == 1


@given(count=st.integers(1, 200), world=st.integers(1, 20))
def test_nodes_are_those_of_the_tree(count: int, world: int) -> None:
    batch = BatchSpec(global_size=count, micro_size=1, sequence=16)
    most = left = 0
    for rank in range(world):
        tree = TreeSum[None](count, lambda _left, _right: None)
        for slot in range(rank * count // world, (rank + 1) * count // world):
            most = max(most, len(tree.nodes) + 1)
            tree.put(range(slot, slot + 1), None)
        left = max(left, len(tree.nodes))
    assert count_nodes(replace(SPEC, batch=batch), world) == (most, left)


def test_bitwise_mode_sends_its_nodes_and_hides_nothing() -> None:
    def found(world: int) -> Traffic:
        batch = BatchSpec(global_size=24, micro_size=1, sequence=16)
        spec = replace(SPEC, batch=batch, reproducibility=Reproducibility.bitwise)
        return make_traffic(spec, world=world, slots=-(-24 // world), parameters=MANY)

    # Where each rank has one node, as much as a ring all-reduce. Of 24 slots, the middle one of
    # three ranks has 8 to 15: 9, 10, 11 are a node, 12, 13, 14 are one, 8 and 15 are left.
    assert found(8) == replace(traffic(DdpSpec(), 8), hideable=0.0)
    assert found(3).ring_bytes == (4 + 1) / 2 * traffic(DdpSpec(), 3).ring_bytes


def test_seconds_are_bytes_and_waits() -> None:
    found = Traffic(ring_bytes=100.0, messages=5, hideable=0.0)
    assert found.seconds(8, 50.0, 0.5) == 100 / 50 + 5 * 2 * 3 * 0.5


def test_links_inside_a_machine() -> None:
    h100 = link_bytes_s(all_gpus()["H100-SXM5-80GB"], None)
    assert h100.worst < 376e9 < h100.best < 450e9  # NVIDIA/nccl, issue 1264
    for name in ("RTX-4090", "RTX-3090", "A100-PCIE-80GB"):  # cards, with or without bridges
        assert link_bytes_s(all_gpus()[name], None).best < 32e9
    assert link_bytes_s(all_gpus()["MI300X"], None).likely > 300e9


@pytest.mark.parametrize("gpu", all_gpus().values(), ids=all_gpus())
def test_links_are_ordered(gpu: object) -> None:
    found = [link_bytes_s(gpu, network) for network in (*Network, None)]  # pyright: ignore[reportArgumentType]
    for link in found:
        assert 0 < link.worst < link.likely < link.best
    for slow, fast in pairwise(found):
        assert all(one <= other for one, other in zip(slow, fast, strict=True))
    assert list(NETWORK_GBIT_S) == list(Network)
