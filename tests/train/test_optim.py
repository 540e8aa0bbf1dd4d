"""Learning rates by step, decay groups, and moments that exist before they are needed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tidemill.errors import SpecError
from tidemill.spec.training import AdamWSpec, OptimSpec, ScheduleKind, SgdSpec
from tidemill.train.optim import (
    lr_at,
    make_optimizer,
    moment_names,
    prepare_moments,
    set_taken_steps,
    taken_steps,
)


def _spec(schedule: str) -> AdamWSpec:
    return AdamWSpec(
        lr=2.0,
        schedule=ScheduleKind(schedule),
        warmup_steps=4,
        decay_steps=14,
        final_fraction=0.1,
        weight_decay=0.1,
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_reaches_the_peak_and_the_fall_its_floor(schedule: str) -> None:
    spec = _spec(schedule)
    assert [lr_at(spec, step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert lr_at(spec, 4) == pytest.approx(2.0)
    floor = 2.0 if schedule == "constant" else 0.2
    assert lr_at(spec, 14) == pytest.approx(floor)
    assert lr_at(spec, 10**6) == pytest.approx(floor)
    falling = [lr_at(spec, step) for step in range(4, 15)]
    assert falling == sorted(falling, reverse=True)


def test_halfway_down() -> None:
    middle = 0.5 * (2.0 + 0.2)
    assert lr_at(_spec("linear"), 9) == pytest.approx(middle)
    assert lr_at(_spec("cosine"), 9) == pytest.approx(middle)
    assert lr_at(_spec("cosine"), 6) > lr_at(_spec("linear"), 6)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = make_optimizer(_spec("linear"), model.named_parameters())
    decayed, kept = optimizer.param_groups
    assert [parameter.dim() for parameter in decayed["params"]] == [2]
    assert decayed["weight_decay"] == 0.1
    assert {parameter.dim() for parameter in kept["params"]} == {1}
    assert kept["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out_and_all_frozen_is_an_error() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    optimizer = make_optimizer(_spec("linear"), model.named_parameters())
    assert [group["params"][0].shape for group in optimizer.param_groups] == [(2, 3)]
    model.weight.requires_grad_(False)
    with pytest.raises(SpecError, match="no trainable parameters"):
        make_optimizer(_spec("linear"), model.named_parameters())


@pytest.mark.parametrize(
    "spec", [_spec("linear"), SgdSpec(lr=0.1, momentum=0.9), SgdSpec(lr=0.1, momentum=0.0)]
)
def test_prepared_moments_are_those_torch_would_have_made(spec: OptimSpec) -> None:
    results = []
    for prepared in (False, True):
        torch.manual_seed(2)
        model = nn.Linear(5, 4)
        optimizer = make_optimizer(spec, model.named_parameters())
        if prepared:
            prepare_moments(optimizer, spec, model.parameters())
            assert taken_steps(optimizer) == 0.0
        for _ in range(3):
            model(torch.randn(8, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        moments = [optimizer.state[model.weight].get(name) for name in moment_names(spec)]
        assert all(moment is not None for moment in moments)
        results.append([model.weight.detach(), *moments])
    for lazily, ahead in zip(*results, strict=True):
        assert torch.equal(lazily, ahead)


def test_taken_steps_come_back() -> None:
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(_spec("linear"), model.named_parameters())
    prepare_moments(optimizer, _spec("linear"), model.parameters())
    set_taken_steps(optimizer, 17.0)
    assert {float(state["step"]) for state in optimizer.state.values()} == {17.0}
    assert taken_steps(optimizer) == 17.0
