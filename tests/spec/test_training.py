"""What is learned: values that cannot work are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import SpecError
from tidemill.spec.training import (
    AdamWSpec,
    BatchSpec,
    CustomModelSpec,
    GptSpec,
    PrecisionKind,
    PrecisionSpec,
    SgdSpec,
    SyntheticSpec,
    TextSpec,
    TokensSpec,
)

GPT = {"layers": 2, "heads": 2, "width": 8}
TOKENS = {"paths": ["a"], "vocab": 10}
BATCH = {"global_size": 4, "micro_size": 2, "sequence": 8}

# A class, what makes a good one, the field that makes it a bad one, and the key that must be named.
REFUSED: list[tuple[type[Any], dict[str, Any], dict[str, Any], str]] = [
    (GptSpec, GPT, {"layers": 0}, "model.layers"),
    (GptSpec, GPT, {"heads": 0}, "model.heads"),
    (GptSpec, GPT, {"width": 0}, "model.width"),
    (GptSpec, GPT, {"width": 6}, "model.width"),
    (GptSpec, GPT, {"width": 10}, "model.width"),
    (GptSpec, GPT, {"dropout": 1.0}, "model.dropout"),
    (GptSpec, GPT, {"dropout": -0.1}, "model.dropout"),
    (CustomModelSpec, {"factory": "a.b:c"}, {"factory": "a.b.c"}, "model.factory"),
    (CustomModelSpec, {"factory": "a.b:c"}, {"factory": ":c"}, "model.factory"),
    (CustomModelSpec, {"factory": "a.b:c"}, {"factory": "a:b c"}, "model.factory"),
    (TextSpec, {}, {"held_out": 0.6}, "data.held_out"),
    (TokensSpec, TOKENS, {"paths": []}, "data.paths"),
    (TokensSpec, TOKENS, {"vocab": 1}, "data.vocab"),
    (TokensSpec, TOKENS, {"held_out": -0.1}, "data.held_out"),
    (SyntheticSpec, {}, {"vocab": 3}, "data.vocab"),
    (SyntheticSpec, {}, {"samples": 0}, "data.samples"),
    (SyntheticSpec, {}, {"ragged": 1.1}, "data.ragged"),
    (SgdSpec, {"lr": 0.1}, {"lr": 0.0}, "optim.lr"),
    (SgdSpec, {"lr": 0.1}, {"lr": float("nan")}, "optim.lr"),
    (SgdSpec, {"lr": 0.1}, {"lr": float("inf")}, "optim.lr"),
    (SgdSpec, {"lr": 0.1}, {"momentum": 1.0}, "optim.momentum"),
    (SgdSpec, {"lr": 0.1}, {"clip": -1.0}, "optim.clip"),
    (SgdSpec, {"lr": 0.1}, {"weight_decay": float("inf")}, "optim.weight_decay"),
    (SgdSpec, {"lr": 0.1}, {"warmup_steps": -1}, "optim.warmup_steps"),
    (SgdSpec, {"lr": 0.1}, {"warmup_steps": 1000}, "optim.decay_steps"),
    (SgdSpec, {"lr": 0.1}, {"decay_steps": 0}, "optim.decay_steps"),
    (SgdSpec, {"lr": 0.1}, {"final_fraction": 1.1}, "optim.final_fraction"),
    (AdamWSpec, {"lr": 0.1}, {"lr": -0.1}, "optim.lr"),
    (AdamWSpec, {"lr": 0.1}, {"beta1": 1.0}, "optim.beta1"),
    (AdamWSpec, {"lr": 0.1}, {"beta2": -0.1}, "optim.beta2"),
    (AdamWSpec, {"lr": 0.1}, {"eps": 0.0}, "optim.eps"),
    (AdamWSpec, {"lr": 0.1}, {"eps": float("inf")}, "optim.eps"),
    (PrecisionSpec, {}, {"loss_scale": -1.0}, "precision.loss_scale"),
    (PrecisionSpec, {}, {"loss_scale": 8.0}, "precision.loss_scale"),
    (PrecisionSpec, {}, {"initial_scale_power": 31}, "precision.initial_scale_power"),
    (PrecisionSpec, {}, {"scale_window": 0}, "precision.scale_window"),
    (PrecisionSpec, {}, {"max_skipped_steps": -1}, "precision.max_skipped_steps"),
    (BatchSpec, BATCH, {"global_size": 0}, "batch.global_size"),
    (BatchSpec, BATCH, {"micro_size": 0}, "batch.micro_size"),
    (BatchSpec, BATCH, {"micro_size": 5}, "batch.micro_size"),
    (BatchSpec, BATCH, {"sequence": 1}, "batch.sequence"),
]


@pytest.mark.parametrize(
    ("cls", "good", "bad", "key"),
    REFUSED,
    ids=[f"{key}={next(iter(bad.values()))}" for *_, bad, key in REFUSED],
)
def test_what_cannot_work_is_refused(
    cls: type[Any], good: dict[str, Any], bad: dict[str, Any], key: str
) -> None:
    cls(**good)
    with pytest.raises(SpecError) as caught:
        cls(**{**good, **bad})
    assert caught.value.key == key
    assert caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (GptSpec, {"layers": 1, "heads": 1, "width": 2, "dropout": 0.95}),
        (TextSpec, {"held_out": 0.5}),
        (SyntheticSpec, {"vocab": 4, "samples": 1, "ragged": 1.0}),
        (SgdSpec, {"lr": 1e-9, "warmup_steps": 0, "decay_steps": 1, "clip": 0.0, "momentum": 0.0}),
        (SgdSpec, {"lr": 1.0, "warmup_steps": 9, "decay_steps": 10, "final_fraction": 1.0}),
        (PrecisionSpec, {"kind": PrecisionKind.fp16, "loss_scale": 8.0}),
        (BatchSpec, {"global_size": 1, "micro_size": 1, "sequence": 2}),
    ],
)
def test_the_edges_of_what_works_are_allowed(cls: type[Any], given: dict[str, Any]) -> None:
    cls(**given)


def test_the_remedy_of_a_width_is_a_width_that_works() -> None:
    with pytest.raises(SpecError, match="use a multiple of 12"):
        GptSpec(layers=1, heads=6, width=100)
    GptSpec(layers=1, heads=6, width=108)
