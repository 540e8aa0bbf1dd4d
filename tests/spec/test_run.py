"""A run's digest names its mathematics; relations between groups are checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.base import differences, from_plain, to_plain
from tidemill.spec.checkpoint import CheckpointSpec
from tidemill.spec.run import ReportSpec, Reproducibility, Resume, RunSpec
from tidemill.spec.scale import ScaleSpec
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
    AdamWSpec,
    BatchSpec,
    CustomModelSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
    ScheduleKind,
    SgdSpec,
    SyntheticSpec,
    TextSpec,
    TokensSpec,
)

RUN = RunSpec(
    name="a",
    seed=1,
    steps=10,
    storage="runs",
    resume=Resume.auto,
    model=GptSpec(layers=2, heads=2, width=8),
    data=TextSpec(paths=["here"], exclude=["b"]),
    optim=AdamWSpec(lr=1e-3),
    strategy=DdpSpec(),
    precision=PrecisionSpec(),
    batch=BatchSpec(global_size=8, micro_size=2, sequence=16),
    memory=MemorySpec(),
    checkpoint=CheckpointSpec(),
    scale=ScaleSpec(),
    report=ReportSpec(),
)

# What may change while a run is the same run, and what may not.
SAME: list[dict[str, Any]] = [
    {"name": "b"},
    {"steps": 20},
    {"storage": "s3://bucket/runs"},
    {"resume": Resume.must},
    {"data": TextSpec(paths=["there"], exclude=[])},
    {"strategy": Fsdp2Spec()},
    {"strategy": DeepSpeedSpec(stage=3)},
    {"precision": PrecisionSpec(max_skipped_steps=0)},
    {"batch": replace(RUN.batch, micro_size=8)},
    {"memory": MemorySpec(recompute=Recompute.blocks)},
    {"strategy": Fsdp2Spec(), "memory": MemorySpec(offload=Offload.all)},
    {"checkpoint": CheckpointSpec(every_steps=1)},
    {"scale": ScaleSpec(workers=7, gpus_per_worker=1)},
    {"report": ReportSpec(live=False)},
]
OTHER: list[dict[str, Any]] = [
    {"seed": 2},
    {"model": GptSpec(layers=3, heads=2, width=8)},
    {"model": GptSpec(layers=2, heads=2, width=8, dropout=0.1)},
    {"model": CustomModelSpec(factory="a:b")},
    {"data": TextSpec(held_out=0.1)},
    {"data": TokensSpec(paths=["here"], vocab=300)},
    {"data": SyntheticSpec()},
    {"optim": AdamWSpec(lr=2e-3)},
    {"optim": AdamWSpec(lr=1e-3, schedule=ScheduleKind.linear)},
    {"optim": SgdSpec(lr=1e-3)},
    {"precision": PrecisionSpec(kind=PrecisionKind.bf16)},
    {"precision": PrecisionSpec(kind=PrecisionKind.fp16)},
    {"batch": replace(RUN.batch, global_size=16)},
    {"batch": replace(RUN.batch, sequence=32)},
    {"reproducibility": Reproducibility.bitwise},
]


BITWISE = {"reproducibility": Reproducibility.bitwise}
NOT_BITWISE = [Fsdp2Spec(), *(DeepSpeedSpec(stage=stage) for stage in (1, 2, 3))]


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_where_a_run_happens_is_not_its_mathematics(changes: dict[str, Any]) -> None:
    changed = replace(RUN, **changes)
    assert changed != RUN
    assert changed.digest() == RUN.digest()
    assert differences(RUN.identity(), changed.identity()) == []


@pytest.mark.parametrize("changes", OTHER, ids=str)
def test_mathematics_is_named_by_the_digest(changes: dict[str, Any]) -> None:
    changed = replace(RUN, **changes)
    (group,) = changes
    assert changed.digest() != RUN.digest()
    found = differences(RUN.identity(), changed.identity())
    assert found
    assert all(key.partition(".")[0] == group for key, _, _ in found)


def test_every_change_has_a_digest_of_its_own() -> None:
    assert len({replace(RUN, **changes).digest() for changes in OTHER}) == len(OTHER)


def test_the_digest_survives_storage() -> None:
    again = from_plain(RunSpec, json.loads(json.dumps(to_plain(RUN))))
    assert again == RUN
    assert again.digest() == RUN.digest()
    assert json.loads(json.dumps(RUN.identity())) == RUN.identity()


def test_the_digest_is_the_same_in_every_version() -> None:
    # Checkpoints hold it: when this fails, runs of the last release can no longer be resumed.
    assert RUN.digest() == "e1ddb9e1b7f0d0985828293f0885e81226bf5f9072e9d70b822e33d4024cec9e"


def test_in_bitwise_mode_the_cut_is_mathematics_and_the_workers_are_not() -> None:
    run = replace(RUN, reproducibility=Reproducibility.bitwise)
    assert replace(run, scale=ScaleSpec(workers=4)).digest() == run.digest()
    cut = replace(run, batch=replace(run.batch, micro_size=1))
    ((key, old, new),) = differences(run.identity(), cut.identity())
    assert (key, old, new) == (
        "reproducibility",
        "bitwise with batch.micro_size=2",
        "bitwise with batch.micro_size=1",
    )


@pytest.mark.parametrize("workers", [5, 8, 9])
def test_a_cut_too_coarse_for_the_workers_is_refused_with_one_that_is_not(workers: int) -> None:
    run = replace(RUN, reproducibility=Reproducibility.bitwise)
    with pytest.raises(SpecError, match="which leaves") as caught:
        replace(run, scale=ScaleSpec(workers=workers))
    assert "scale.workers=4" in caught.value.remedy
    micro = 8 // workers
    assert ("batch.micro_size" in caught.value.remedy) is (micro > 0)
    if micro:
        assert f"batch.micro_size={micro}" in caught.value.remedy
        batch = replace(run.batch, micro_size=micro)
        replace(run, scale=ScaleSpec(workers=workers), batch=batch)


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (DdpSpec(), "ddp"),
        (Fsdp2Spec(), "fsdp2"),
        (DeepSpeedSpec(stage=1), "deepspeed_z1"),
        (DeepSpeedSpec(stage=3), "deepspeed_z3"),
    ],
)
def test_strategies_are_named_as_they_are_typed(
    strategy: DdpSpec | Fsdp2Spec | DeepSpeedSpec, name: str
) -> None:
    assert strategy.name == name


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "a" * 201}, "name"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"steps": 0}, "steps"),
        ({"storage": ""}, "storage"),
        (
            {
                "strategy": DeepSpeedSpec(stage=2),
                "precision": PrecisionSpec(kind=PrecisionKind.fp16, scale_window=499),
            },
            "precision.scale_window",
        ),
        ({"strategy": DeepSpeedSpec(stage=2, overlap=True)}, "strategy.overlap"),
        *(({**BITWISE, "strategy": strategy}, "reproducibility") for strategy in NOT_BITWISE),
        ({**BITWISE, "scale": ScaleSpec(workers=5)}, "reproducibility"),
    ],
)
def test_relations_are_checked(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        replace(RUN, **changes)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a" * 200},
        {"name": "0,lr=1e-3+x.y_z-"},
        {"seed": 2**63 - 1},
        {
            "strategy": DeepSpeedSpec(stage=2),
            "precision": PrecisionSpec(kind=PrecisionKind.fp16, scale_window=500),
        },
        {
            "strategy": DeepSpeedSpec(stage=2),
            "precision": PrecisionSpec(kind=PrecisionKind.fp16, scale_window=1, loss_scale=4.0),
        },
        {"precision": PrecisionSpec(kind=PrecisionKind.fp16, scale_window=1)},
        {
            "strategy": DeepSpeedSpec(stage=2, overlap=True),
            "scale": ScaleSpec(gpus_per_worker=1),
        },
        {**BITWISE, "scale": ScaleSpec(workers=4)},
    ],
    ids=str,
)
def test_relations_that_hold_are_allowed(changes: dict[str, Any]) -> None:
    replace(RUN, **changes)


@pytest.mark.parametrize(
    ("strategy", "held", "remedy"),
    [
        (DdpSpec(), "none", "use strategy="),
        (Fsdp2Spec(), "none all", "use memory.offload=all or strategy=deepspeed_z2"),
        (DeepSpeedSpec(stage=1), "none optimizer", "memory.offload=optimizer or strategy=dee"),
        (DeepSpeedSpec(stage=2), "none optimizer", "memory.offload=optimizer or strategy=dee"),
        (DeepSpeedSpec(stage=3), "none optimizer all", ""),
    ],
)
def test_strategies_offload_what_they_can(strategy: StrategySpec, held: str, remedy: str) -> None:
    for offload in Offload:
        changes = {"strategy": strategy, "memory": MemorySpec(offload=offload)}
        if offload in held.split():
            replace(RUN, **changes)
            continue
        with pytest.raises(SpecError, match=remedy) as caught:
            replace(RUN, **changes)
        assert caught.value.key == "memory.offload"


@pytest.mark.parametrize(
    ("strategy", "offload"),
    [(DdpSpec(), Offload.optimizer), (DdpSpec(), Offload.all)],
)
def test_the_remedy_of_a_refused_offload_is_one(strategy: DdpSpec, offload: Offload) -> None:
    remedies = {"deepspeed_z2": DeepSpeedSpec(stage=2), "fsdp2": Fsdp2Spec()}
    with pytest.raises(SpecError) as caught:
        replace(RUN, strategy=strategy, memory=MemorySpec(offload=offload))
    named = remedies[caught.value.remedy.partition("=")[2]]
    replace(RUN, strategy=named, memory=MemorySpec(offload=offload))


@pytest.mark.parametrize(
    ("cls", "bad", "key"),
    [
        (DdpSpec, {"bucket_mib": 0}, "strategy.bucket_mib"),
        (DeepSpeedSpec, {"stage": 0}, "strategy.stage"),
        (DeepSpeedSpec, {"stage": 4}, "strategy.stage"),
        (DeepSpeedSpec, {"stage": 2, "bucket_elements": -1}, "strategy.bucket_elements"),
        (DeepSpeedSpec, {"stage": 1, "overlap": True}, "strategy.overlap"),
        (ScaleSpec, {"workers": 0}, "scale.workers"),
        (ScaleSpec, {"gpus_per_worker": 2}, "scale.gpus_per_worker"),
        (ScaleSpec, {"max_failures": -2}, "scale.max_failures"),
        (ScaleSpec, {"collective_timeout_s": 0.5}, "scale.collective_timeout_s"),
        (ScaleSpec, {"cpus_per_worker": 0.0}, "scale.cpus_per_worker"),
        (ReportSpec, {"every_steps": 0}, "report.every_steps"),
        (ReportSpec, {"eval_every_steps": -1}, "report.eval_every_steps"),
        (ReportSpec, {"eval_samples": -1}, "report.eval_samples"),
    ],
)
def test_fields_are_checked(cls: type[Any], bad: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        cls(**bad)
    assert caught.value.key == key
