"""The loss scale halves on trouble, doubles after a good while, and survives a restart."""

from __future__ import annotations

from tidemill.spec.training import PrecisionKind, PrecisionSpec
from tidemill.train.precision import LossScale, make_loss_scale


def test_only_fp16_is_scaled() -> None:
    for kind in (PrecisionKind.fp32, PrecisionKind.bf16):
        scale = make_loss_scale(PrecisionSpec(kind=kind))
        scale.update(finite=False)
        assert scale.value == 1.0


def test_a_fixed_scale_stays() -> None:
    scale = make_loss_scale(PrecisionSpec(kind=PrecisionKind.fp16, loss_scale=128.0))
    for finite in (True, False) * 5:
        scale.update(finite=finite)
    assert scale.value == 128.0
    scale.restore({"value": 4.0, "good_steps": 1})
    assert scale.value == 128.0


def test_a_dynamic_scale_moves_both_ways_and_not_below_one() -> None:
    spec = PrecisionSpec(kind=PrecisionKind.fp16, initial_scale_power=2, scale_window=3)
    scale = make_loss_scale(spec)
    assert scale.value == 4.0
    for _ in range(3):
        scale.update(finite=True)
    assert scale.value == 8.0
    for expected in (4.0, 2.0, 1.0, 1.0):
        scale.update(finite=False)
        assert scale.value == expected
    scale.update(finite=True)
    scale.update(finite=True)
    again = LossScale(window=3)
    again.restore(scale.state())
    again.update(finite=True)
    assert again.value == 2.0
