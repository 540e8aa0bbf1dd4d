"""Every key can be found, and a key that is nearly right is put right."""

from __future__ import annotations

import pytest

from tidemill.spec.doors import GenerateSpec
from tidemill.spec.keys import choices_of, groups_of, keys_of, unknown_key
from tidemill.spec.run import RunSpec
from tidemill.spec.strategy import DeepSpeedSpec
from tidemill.spec.training import OptimSpec


def test_keys_of_all_variants_are_found() -> None:
    known = keys_of(RunSpec)
    assert {"steps", "model.layers", "model.factory", "strategy.stage", "data.vocab"} <= set(known)
    assert "model" not in known
    assert known["strategy.stage"].owner is DeepSpeedSpec
    assert known["strategy.stage"].hint is int


def test_a_key_belongs_to_the_class_that_declares_it_first() -> None:
    # Subclasses repeat inherited fields; the hint must not blame one variant for all.
    assert keys_of(RunSpec)["optim.lr"].owner is OptimSpec


def test_choices_are_told_of_keys_that_have_some() -> None:
    assert choices_of("resume", RunSpec) == ("auto", "never", "must")
    assert choices_of("steps", RunSpec) == choices_of("nothing", RunSpec) == ()


def test_groups_are_the_specs_inside() -> None:
    assert groups_of(GenerateSpec) == ()
    assert set(groups_of(RunSpec)) == {
        *("model", "data", "optim", "strategy", "precision", "batch"),
        *("memory", "checkpoint", "scale", "report", "placement", "budget"),
    }


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("batch.gobal_size", "did you mean batch.global_size?"),
        ("global_size", "did you mean batch.global_size?"),
        ("checkpoint.live", "did you mean report.live?"),
        ("Steps", "did you mean steps?"),
        ("models", "did you mean model?"),
        ("optim.momentun", "did you mean optim.momentum?"),
        ("scale.q", "use one of scale.workers, scale.min_workers, "),
        ("zebra", "--cfg job shows all keys"),
        ("zebra.q", "--cfg job shows all keys"),
    ],
)
def test_the_nearest_key_is_named(typed: str, remedy: str) -> None:
    error = unknown_key(typed, RunSpec)
    assert error.key == typed
    assert error.remedy.startswith(remedy)


def test_a_key_of_another_variant_is_no_typing_mistake() -> None:
    error = unknown_key("strategy.stage", RunSpec)
    assert str(error) == (
        "strategy.stage: belongs to DeepSpeedSpec, which is not in use; leave it out, or choose "
        "another strategy"
    )
