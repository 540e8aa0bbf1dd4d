"""A plan's numbers are the ones that training will have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spec.test_run import RUN
from tidemill.errors import SpecError
from tidemill.plan.run import count_parameters, describe, make_run_plan
from tidemill.spec.checkpoint import CheckpointSpec, Verify
from tidemill.spec.run import Reproducibility
from tidemill.spec.scale import ScaleSpec
from tidemill.spec.strategy import DeepSpeedSpec, MemorySpec, Offload, Recompute
from tidemill.spec.training import BatchSpec, CustomModelSpec, GptSpec, SyntheticSpec

SIZES = st.builds(
    lambda layers, heads, half: GptSpec(layers=layers, heads=heads, width=2 * heads * half),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
)


@given(SIZES, st.integers(2, 300))
def test_parameters_are_those_of_the_model(spec: GptSpec, vocab: int) -> None:
    pytest.importorskip("torch")
    from tidemill.train.model import build_model

    model = build_model(spec, vocab=vocab, sequence=4, seed=0)
    assert count_parameters(spec, vocab=vocab) == sum(each.numel() for each in model.parameters())


def test_only_the_user_knows_the_size_of_a_custom_model() -> None:
    assert count_parameters(CustomModelSpec(factory="a:b"), vocab=10) is None


def test_tokens_follow_from_the_batch_whatever_the_workers() -> None:
    plans = [
        make_run_plan(replace(RUN, scale=ScaleSpec(workers=workers)), vocab=257, train_tokens=640)
        for workers in (1, 2, 3, 8)
    ]
    assert {plan.step_tokens for plan in plans} == {8 * 16}
    assert {plan.total_tokens for plan in plans} == {10 * 8 * 16}
    assert {plan.epochs for plan in plans} == {2.0}
    assert [plan.batch.accumulate for plan in plans] == [4, 2, 2, 1]
    assert [plan.batch.world for plan in plans] == [1, 2, 3, 8]


def test_bitwise_mode_plans_fixed_slots_and_says_so() -> None:
    plans = {
        mode: make_run_plan(
            replace(RUN, scale=ScaleSpec(workers=3), reproducibility=mode),
            vocab=257,
            train_tokens=640,
        )
        for mode in Reproducibility
    }
    assert {mode.value: plan.batch.count for mode, plan in plans.items()} == {
        "standard": 6,
        "bitwise": 4,
    }
    said = {mode.value: "\n".join(describe(plan)) for mode, plan in plans.items()}
    assert "each worker takes 2 slots of up to 2" in said["bitwise"]
    assert "the same bits at any number of workers" in said["bitwise"]
    assert "bits" not in said["standard"]


def test_made_up_data_counts_its_samples() -> None:
    spec = replace(RUN, data=SyntheticSpec(samples=40))
    plan = make_run_plan(spec, vocab=64, train_tokens=0)
    assert plan.epochs == 10 * 8 / 40


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^data: holds no tokens to train on"):
        make_run_plan(RUN, vocab=257, train_tokens=0)


def test_a_plan_is_said_in_five_lines() -> None:
    spec = replace(
        RUN,
        strategy=DeepSpeedSpec(stage=2),
        batch=BatchSpec(global_size=32, micro_size=5, sequence=1024),
        scale=ScaleSpec(workers=2),
    )
    assert describe(make_run_plan(spec, vocab=257, train_tokens=1_000_000)) == [
        "run a: 10 steps, 2 CPU workers, deepspeed_z2, fp32",
        "model: 3,632 parameters, 2 layers, 2 heads, width 8, vocabulary 257",
        "data: 1,000,000 tokens an epoch, 327,680 tokens this run, 0.328 epochs",
        "batch: 32 samples x 1,024 tokens a step, each worker takes 4 slots of up to 4",
        "checkpoints: every 100 steps, at the end, newest 2 kept in runs/a",
    ]


@pytest.mark.parametrize(
    ("strategy", "offload", "said"),
    [
        (DeepSpeedSpec(stage=2), Offload.optimizer, "optimizer state in host memory"),
        (DeepSpeedSpec(stage=3), Offload.all, "all state in host memory"),
    ],
)
def test_a_plan_says_what_lies_in_host_memory(
    strategy: DeepSpeedSpec, offload: Offload, said: str
) -> None:
    spec = replace(RUN, strategy=strategy, memory=MemorySpec(offload=offload))
    lines = describe(make_run_plan(spec, vocab=257, train_tokens=1_000_000))
    assert lines[0].endswith(f", {said}")


def test_a_plan_says_what_is_unusual() -> None:
    spec = replace(
        RUN,
        steps=1,
        model=CustomModelSpec(factory="my_lab.models:make"),
        memory=MemorySpec(recompute=Recompute.blocks),
        scale=ScaleSpec(workers=1, gpus_per_worker=1),
        checkpoint=CheckpointSpec(every_steps=0, keep_last=1),
        storage="s3://bucket/runs/",
    )
    lines = describe(make_run_plan(spec, vocab=257, train_tokens=1_000_000))
    assert lines[0] == "run a: 1 step, 1 GPU worker, ddp, fp32, recomputing blocks"
    assert lines[1] == "model: my_lab.models:make, vocabulary 257"
    assert lines[4] == "checkpoints: at the end, newest 1 kept in s3://bucket/runs/a"


@pytest.mark.parametrize(
    ("chosen", "facts"),
    [
        (
            {"every_steps": 500, "every_s": 600.0, "keep_best": 1, "keep_every_steps": 1000},
            ["every 500 steps or 10 minutes", "newest 2 + best 1 + one per 1,000 steps kept in"],
        ),
        (
            {"near_gib": 16.0, "near_every_steps": 20},
            ["every 100 steps", "newest 2 kept in", "near copies every 20 steps in up to 16 GiB"],
        ),
        (
            {"near_gib": 0.5, "every_steps": 1},
            ["every 1 step", "newest 2 kept in", "near copies of each in up to 0.5 GiB"],
        ),
        (
            {"every_steps": 0, "every_s": 7200.0, "verify": Verify.size},
            ["every 2 hours", "newest 2 kept in", "verified by size alone"],
        ),
        ({"every_steps": 0, "every_s": 90.0}, ["every 90 seconds", "newest 2 kept in"]),
        ({"every_steps": 0, "every_s": 1.0}, ["every 1 second", "newest 2 kept in"]),
        ({"every_steps": 0, "keep_last": 1, "retry_for_s": 0.0}, ["", "newest 1 kept in"]),
    ],
)
def test_a_plan_says_when_state_is_saved_and_what_stays(
    chosen: dict[str, Any], facts: list[str]
) -> None:
    spec = replace(RUN, checkpoint=CheckpointSpec(**chosen))
    told = describe(make_run_plan(spec, vocab=257, train_tokens=1_000_000))
    due, kept, *more = facts
    expected = [due, "at the end", f"{kept} runs/a"] if due else ["at the end", f"{kept} runs/a"]
    expected += [f"{fact} a node" if fact.startswith("near") else fact for fact in more]
    assert told[4:] == [f"checkpoints: {', '.join(expected)}"]


@pytest.mark.parametrize(
    ("chosen", "origin"),
    [
        ({"init_from": "s3://models/base"}, "weights in s3://models/base"),
        ({"from_run": "base"}, "the newest checkpoint of run base"),
        ({"from_run": "base", "from_step": 12_000}, "step 12,000 of run base"),
    ],
)
def test_a_plan_says_what_a_fresh_run_starts_from(chosen: dict[str, Any], origin: str) -> None:
    spec = replace(RUN, checkpoint=CheckpointSpec(**chosen))
    told = describe(make_run_plan(spec, vocab=257, train_tokens=1_000_000))
    assert told[5:] == [f"starts from: {origin}, unless it has checkpoints of its own"]
