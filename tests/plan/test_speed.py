"""An estimate of a step holds the steps that others have measured, and grows where it must."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spec.test_run import RUN
from tidemill.errors import SpecError, TidemillError
from tidemill.plan.gpus import Gpu, all_gpus
from tidemill.plan.run import count_parameters
from tidemill.plan.speed import (
    StepEstimate,
    estimate_step,
    measured_efficiency,
    sample_flops,
)
from tidemill.spec.placement import Network
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import (
    DdpSpec,
    DeepSpeedSpec,
    Fsdp2Spec,
    MemorySpec,
    Offload,
    Recompute,
    StrategySpec,
)
from tidemill.spec.training import (
    BatchSpec,
    CustomModelSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
)

VOCAB = 50_257
SMALL = GptSpec(layers=12, heads=12, width=768)
GPT3 = GptSpec(layers=96, heads=96, width=12_288)
A100_40 = all_gpus()["A100-SXM4-40GB"]
A100 = all_gpus()["A100-SXM4-80GB"]
STRATEGIES = (DdpSpec(), Fsdp2Spec(), *(DeepSpeedSpec(stage=stage) for stage in (1, 2, 3)))


def make_run(samples: int, micro: int, **more: Any) -> RunSpec:
    usual: dict[str, Any] = {
        "model": SMALL,
        "precision": PrecisionSpec(kind=PrecisionKind.bf16),
        "batch": BatchSpec(global_size=samples, micro_size=micro, sequence=1024),
    }
    return replace(RUN, **usual | more)


def estimate(spec: RunSpec, gpu: Gpu = A100, world: int = 8, **more: Any) -> StepEstimate:
    usual: dict[str, Any] = {"per_machine": 8, "network": Network.fabric, "vocab": VOCAB}
    return estimate_step(spec, gpu=gpu, world=world, **usual | more)


# --- against what others measured ------------------------------------------------------------


def test_gpt3_takes_as_long_as_megatron_said() -> None:
    # Narayanan et al., arXiv 2104.04473, section 5.1: 175 B parameters, 300 B tokens, 1,024 A100 at
    # 140 of 312 teraflop/s, everything recomputed: 34 days.
    spec = make_run(
        1536,
        1,
        model=GPT3,
        strategy=Fsdp2Spec(),
        memory=MemorySpec(recompute=Recompute.blocks),
        batch=BatchSpec(global_size=1536, micro_size=1, sequence=2048),
    )
    assert count_parameters(GPT3, vocab=51_200) == pytest.approx(175e9, rel=0.01)
    # 1,536 samples are dealt to 768 ranks, two each; so to as much of a machine as is at work.
    found = estimate(spec, A100, 768, vocab=51_200, efficiency=140 / 312)
    steps = 300e9 / (1536 * 2048)
    days = found.compute_s * steps / 86_400 * 768 / 1024
    assert days == pytest.approx(34, rel=0.04)
    assert found.flops * 768 == pytest.approx(8 * 175e9 * 1536 * 2048, rel=0.04)


def test_nanogpt_is_within_the_range() -> None:
    # Its README: 600,000 steps of 0.5 M tokens on 8 A100 40GB "in about 4 days".
    found = estimate(make_run(480, 12, strategy=DdpSpec()), A100_40)
    assert found.low_s < 4 * 86_400 / 600_000 < found.high_s
    # debtirthasaha.github.io/blog/2026/gpt2-124m: 127 steps of 2^19 tokens a minute on 8 A100.
    found = estimate(make_run(512, 16, strategy=DdpSpec()))
    assert found.low_s < 60 / 127 < found.high_s
    assert found.likely_s == pytest.approx(60 / 127, rel=0.3)


def test_one_gpu_is_within_the_range_in_either_precision() -> None:
    # Karpathy, "Let's reproduce GPT-2 (124M)": 16 x 1,024 tokens on one A100 took 1000 ms in fp32,
    # and with flash attention compiled 96 ms.
    full = make_run(16, 16, strategy=DdpSpec(), precision=PrecisionSpec())
    found = estimate(full, world=1)
    assert found.low_s < 1.0 < found.high_s
    found = estimate(make_run(16, 16, strategy=DdpSpec()), world=1)
    assert found.low_s < 0.096 < found.high_s


# --- by hand ---------------------------------------------------------------------------------


def test_flops_are_six_per_parameter_and_token() -> None:
    spec = make_run(8, 8)
    parameters = count_parameters(SMALL, vocab=VOCAB) or 0
    flops = sample_flops(spec, parameters)
    assert flops == pytest.approx((6 * parameters + 6 * 12 * 768 * 1024) * 1024, rel=1e-6)
    recomputed = replace(spec, memory=MemorySpec(recompute=Recompute.blocks))
    head = 6 * VOCAB * 768 * 1024
    assert sample_flops(recomputed, parameters) - head == pytest.approx(
        (flops - head) * 4 / 3, rel=1e-3
    )


def test_fp32_is_not_taken_for_tf32() -> None:
    found = estimate(make_run(8, 8, precision=PrecisionSpec()), world=1, efficiency=1.0)
    assert found.compute_s == pytest.approx(found.flops / 19.5e12)


def test_a_step_is_as_slow_as_the_rank_with_most_samples() -> None:
    flops = {world: estimate(make_run(12, 4), world=world).flops for world in (1, 4, 5, 8, 12, 13)}
    one = flops[12]
    assert [round(flops[world] / one) for world in flops] == [12, 3, 3, 2, 1, 1]


# --- as it must be ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
@given(
    world=st.sampled_from([1, 2, 3, 8, 16, 64]),
    network=st.sampled_from(Network),
    micro=st.integers(1, 64),
    efficiency=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_ranges_hold_what_is_likely(
    strategy: StrategySpec, world: int, network: Network, micro: int, efficiency: float
) -> None:
    found = estimate(
        make_run(512, micro, strategy=strategy),
        world=world,
        network=network,
        efficiency=efficiency,
    )
    assert 0 < found.low_s < found.likely_s < found.high_s
    terms = found.compute_s + found.memory_s + found.exchange_s
    assert found.likely_s == pytest.approx(terms)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
def test_faster_machines_are_faster(strategy: StrategySpec) -> None:
    spec = make_run(512, 8, strategy=strategy)
    usual = estimate(spec)
    peak = {kind: 2 * value for kind, value in A100.tflops.items()}
    for better in (
        replace(A100, tflops=peak),
        replace(A100, memory_gb_s=2 * A100.memory_gb_s),
        replace(A100, nvlink_gb_s=2 * A100.nvlink_gb_s),
    ):
        found = estimate(spec, better)
        assert found.low_s <= usual.low_s
        # What is hidden already cannot be hidden better.
        wire = better.nvlink_gb_s != A100.nvlink_gb_s
        assert found.likely_s < usual.likely_s or (wire and usual.exchange_s == 0)
        assert found.high_s < usual.high_s
    across = [estimate(spec, world=16, network=network).likely_s for network in Network]
    assert across == sorted(across, reverse=True)
    assert across[0] > 2 * across[-1]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
def test_with_nothing_to_exchange_twice_the_ranks_take_half_the_time(
    strategy: StrategySpec,
) -> None:
    free = replace(A100, nvlink_gb_s=1e12, memory_gb_s=1e12)
    spec = make_run(512, 8, strategy=strategy)
    found = {world: estimate(spec, free, world, per_machine=512) for world in (1, 2, 4, 64)}
    for world, step in found.items():
        assert step.compute_s == pytest.approx(found[1].compute_s / world)
        assert step.likely_s == pytest.approx(found[1].likely_s / world, rel=0.15)


def test_state_on_the_host_costs_time() -> None:
    spec = make_run(64, 8, strategy=DeepSpeedSpec(stage=2))
    away = replace(spec, memory=MemorySpec(offload=Offload.optimizer))
    assert estimate(away).memory_s > 2 * estimate(spec).memory_s


# --- the way back ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
@given(efficiency=st.floats(0.02, 0.9))
def test_a_measured_step_gives_back_its_efficiency(
    strategy: StrategySpec, efficiency: float
) -> None:
    spec = make_run(512, 8, strategy=strategy)
    place: dict[str, Any] = {"world": 16, "per_machine": 8, "network": Network.private}
    step_s = estimate(spec, efficiency=efficiency, **place).likely_s
    found = measured_efficiency(spec, step_s, gpu=A100, vocab=VOCAB, **place)
    again = estimate(spec, efficiency=found, **place).likely_s
    assert again == pytest.approx(step_s, rel=1e-6)


def test_no_gpu_is_faster_than_its_peak() -> None:
    with pytest.raises(TidemillError, match="faster than A100-SXM4-80GB can be"):
        measured_efficiency(
            make_run(512, 8), 1e-6, gpu=A100, world=8, per_machine=8, network=None, vocab=VOCAB
        )


# --- what cannot be --------------------------------------------------------------------------


def test_a_gpu_without_the_units_is_named() -> None:
    with pytest.raises(SpecError, match=r"precision\.kind: T4 has no units for bf16"):
        estimate(make_run(8, 8), all_gpus()["T4"])


def test_machines_must_be_connected() -> None:
    with pytest.raises(SpecError, match=r"placement\.network: nothing connects 16 ranks"):
        estimate(make_run(16, 8), world=16, network=None)


def test_a_model_of_ones_own_has_as_many_parameters_as_one_says() -> None:
    spec = make_run(8, 8, model=CustomModelSpec(factory="a:b"))
    assert estimate(spec, parameters=10**9).flops == 6 * 10**9 * 1024
    with pytest.raises(SpecError, match="have it traced"):
        estimate(spec)


# --- for placement ---------------------------------------------------------------------------
