"""What the smaller doors are asked for is checked before a checkpoint is looked for."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.doors import (
    Action,
    AuditSpec,
    CheckpointsSpec,
    ExportFormat,
    ExportSpec,
    GenerateSpec,
)


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"run": ""}, "run"),
        ({"run": "runs/a"}, "run"),
        ({"run": "runs\\a"}, "run"),
        ({"tokens": 0}, "tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"storage": ""}, "storage"),
    ],
)
def test_generating_needs_sense(bad: dict[str, Any], key: str) -> None:
    GenerateSpec(run="a")
    with pytest.raises(SpecError) as caught:
        GenerateSpec(**{"run": "a", **bad})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"run": ""}, "run"),
        ({"to": ""}, "to"),
        ({"storage": ""}, "storage"),
        ({"step": -1}, "step"),
        ({"shard_gib": -0.5}, "shard_gib"),
        ({"shard_gib": float("inf")}, "shard_gib"),
    ],
)
def test_exporting_needs_sense(bad: dict[str, Any], key: str) -> None:
    ExportSpec(run="a", to="b")
    with pytest.raises(SpecError) as caught:
        ExportSpec(**{"run": "a", "to": "b", **bad})
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("action", "bad", "key"),
    [
        ("list", {"run": "a/b"}, "run"),
        ("list", {"storage": ""}, "storage"),
        ("show", {"step": -1}, "step"),
        ("diff", {"with_step": -1}, "with_step"),
        ("diff", {"with_run": "../a", "with_step": 1}, "with_run"),
        ("diff", {"top": -1, "with_step": 1}, "top"),
        ("diff", {}, "with_step"),
        ("diff", {"step": 5, "with_step": 5}, "with_step"),
        ("diff", {"step": 5, "with_step": 5, "with_run": "a"}, "with_step"),
        ("prune", {}, "keep_last"),
        ("prune", {"keep_last": -1}, "keep_last"),
        ("prune", {"keep_best": -1, "keep_last": 1}, "keep_best"),
        ("prune", {"keep_every_steps": -1, "keep_last": 1}, "keep_every_steps"),
    ],
)
def test_looking_at_checkpoints_needs_sense(action: str, bad: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        CheckpointsSpec(**{"action": Action(action), "run": "a", **bad})
    assert caught.value.key == key


@pytest.mark.parametrize(("bad", "key"), [({"run": "a/b"}, "run"), ({"storage": ""}, "storage")])
def test_auditing_needs_sense(bad: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        AuditSpec(**{"run": "a", **bad})
    assert caught.value.key == key


def test_any_rule_says_what_to_keep() -> None:
    for rule in ("keep_last", "keep_best", "keep_every_steps"):
        fields: dict[str, Any] = {rule: 1}
        CheckpointsSpec(action=Action.prune, run="a", **fields)


def test_a_comparison_needs_two() -> None:
    for other in ({"with_step": 6}, {"with_run": "b"}, {"with_run": "b", "with_step": 5}):
        CheckpointsSpec(**{"action": Action.diff, "run": "a", "step": 5, **other})


def test_formats_are_known_to_torch() -> None:
    torch = pytest.importorskip("torch")
    sizes = {form: getattr(torch, form.torch_name).itemsize for form in ExportFormat}
    assert sizes == {ExportFormat.fp32: 4, ExportFormat.bf16: 2, ExportFormat.fp16: 2}
    assert getattr(torch, ExportFormat.bf16.torch_name) is torch.bfloat16
