"""One checkpoint, and two side by side: everything is told, and the outcome in plain words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.report.test_pages import NOW_S, OLDER, PLACE, WHOLE, shown, words
from tidemill.report.inventory import (
    Anatomy,
    Change,
    Differences,
    FileRow,
    KindChange,
    TensorChange,
    TensorKind,
)

ANATOMY = Anatomy(
    place=PLACE,
    checkpoint=WHOLE,
    samples=9600,
    rng="keyed",
    digest="d" * 64,
    corpus_digest="c" * 64,
    scalars={
        "taken_steps": 149.0,
        "loss_scale": {"value": 65536.0, "good_steps": 12},
        "guard": {"skipped": 3, "in_a_row": 1},
        "other": [1, 2],
    },
    identity={"seed": 1, "model": {"variant": "GptSpec", "layers": 4, "dropout": 0.0}},
    kinds=(
        TensorKind(
            kind="param", tensors=26, elements=820_480, bytes=3_281_920, dtypes=("float32",)
        ),
    ),
    files=(FileRow(name="rank-00000.bin", bytes=9_845_856, data=9_845_760, sha256="ab" * 32),),
)
SAME = Differences(
    left_place=f"{PLACE}/checkpoints/{WHOLE.name}",
    left=WHOLE,
    right_place=f"{PLACE}/checkpoints/{OLDER.name}",
    right=OLDER,
    identity=(),
    facts=(),
    only_left=(),
    only_right=(),
    unlike=(),
    tensors=78,
    elements=2_461_440,
    differing=0,
    differing_elements=0,
    kinds=(),
    worst=(),
    bit_equal=True,
)
OTHER = replace(
    SAME,
    differing=30,
    differing_elements=1_000_000,
    kinds=(KindChange(kind="param", tensors=78, differing=30, largest=0.5, relative=0.25),),
    worst=(
        TensorChange(name="param.a", elements=1000, differing=10, largest=0.5, relative=0.25),
        TensorChange(name="param.b", elements=7, differing=7, largest=math.inf, relative=math.inf),
    ),
    bit_equal=False,
)


def facts(page: Anatomy, width: int = 80) -> dict[str, str]:
    """The lines above the tables, by their first word or two."""
    pairs = (line.split("  ", 1) for line in shown(page, width) if "  " in line)
    return {name: words(value) for name, value in pairs}


@pytest.mark.parametrize("width", [80, 120])
def test_everything_of_a_manifest_is_told(width: int) -> None:
    lines = shown(ANATOMY, width)
    assert lines[0] == f"{PLACE}/checkpoints/{WHOLE.name}: whole"
    told = facts(ANATOMY, width)
    assert told == told | {
        "cursor": "step 150, 9,600 samples",
        "saved": "2027-01-15 07:57:55 UTC, 2m 05s ago, by attempt 1",
        "world": "2 ranks, deepspeed_z2, bf16",
        "loss": "2.3456",
        "optimizer": "149 steps taken",
        "loss scale": "65536, 12 good steps since it changed",
        "guard": "3 steps skipped, the newest 1 in a row",
        "other": "[1, 2]",
        "random": "each follows from the seed and the number of its sample",
        "origin": "its own first step",
        "digest": f"{'d' * 16}…, of the corpus {'c' * 16}…",
        "seed": "1",
        "model": "GptSpec: layers 4, dropout 0",
        "param": "26 820,480 3.13 MiB float32",
        "rank-00000.bin": "9.39 MiB 9,845,760 bytes abababababababab…",
    }


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"checkpoint": replace(WHOLE, val_loss=2.5)}, "loss", "2.3456, held-out 2.5000"),
        ({"checkpoint": replace(WHOLE, loss=None)}, "loss", "not known"),
        ({"checkpoint": replace(WHOLE, world=1)}, "world", "1 rank, deepspeed_z2, bf16"),
        (
            {"checkpoint": replace(WHOLE, origin={"run": "tide", "step": 40})},
            "origin",
            "step 40 of tide",
        ),
        ({"scalars": {"guard": {"skipped": 0, "in_a_row": 0}}}, "guard", "no step skipped"),
        ({"scalars": {"loss_scale": {"value": 1.0, "good_steps": 0}}}, "loss scale", "1"),
        ({"rng": "thrown"}, "random", "thrown"),
    ],
)
def test_facts_are_told_in_words(changes: dict[str, Any], name: str, told: str) -> None:
    assert facts(replace(ANATOMY, **changes))[name] == told


def test_facts_that_are_unknown_are_left_out() -> None:
    bare = replace(ANATOMY, scalars={}, checkpoint=replace(WHOLE, at_s=None))
    assert {"optimizer", "loss scale", "guard", "saved"}.isdisjoint(facts(bare))


def test_what_is_wrong_is_told_first() -> None:
    hurt = replace(WHOLE, state="corrupt", problem="rank-00000.bin is missing")
    assert shown(replace(ANATOMY, checkpoint=hurt))[:2] == [
        f"{PLACE}/checkpoints/{WHOLE.name}: corrupt",
        f"{WHOLE.name}: rank-00000.bin is missing",
    ]


# --- diff -------------------------------------------------------------------------------------


def test_equal_ones_are_called_bit_equal() -> None:
    assert shown(SAME) == [
        f"left   {PLACE}/checkpoints/{WHOLE.name}",
        f"right  {PLACE}/checkpoints/{OLDER.name}",
        "the same configuration, cursor and scalars",
        "bit-equal: 78 tensors, 2.46M elements",
    ]


def test_what_differs_is_told_kind_by_kind_then_the_worst() -> None:
    lines = [words(line) for line in shown(OTHER)]
    assert "param 78 30 0.5 0.25" in lines
    assert lines.index("param.a 1,000 10 0.5 0.25") < lines.index("param.b 7 all inf inf")
    told = "not equal: 30 of 78 tensors differ, in 1.00M of 2.46M elements; top=0 names all"
    assert lines[-1] == told
    every = shown(replace(OTHER, differing=2))[-1]
    assert every == "not equal: 2 of 78 tensors differ, in 1.00M of 2.46M elements"


def test_settings_that_differ_are_told_side_by_side() -> None:
    page = replace(
        SAME,
        facts=(Change(key="step", left=100, right=150),),
        identity=(
            Change(key="optim.lr", left=0.003, right=None),
            Change(key="optim.eps", left=0.10000000001, right=0.1),
        ),
    )
    lines = [words(line) for line in shown(page)]
    assert "step 100 150" in lines
    assert "optim.lr 0.003 –" in lines
    assert "optim.eps 0.10000000001 0.1" in lines
    assert "the same configuration" not in " ".join(lines)


def test_tensors_of_one_side_only_are_named_up_to_a_few() -> None:
    many = tuple(f"param.{number}" for number in range(11))
    page = replace(SAME, only_left=many, only_right=("buffer.x",), bit_equal=False)
    text = words(" ".join(shown(page)))
    assert "11 tensors on the left only: param.0, param.1," in text
    assert "param.7 and 3 more" in text
    assert "1 tensor on the right only: buffer.x" in text
    assert text.endswith("not equal, but what both have is bit-equal: 78 tensors, 2.46M elements")


def test_tensors_of_another_shape_are_told() -> None:
    unlike = (Change(key="param.a", left="float32 [2, 3]", right="float32 [3, 2]"),)
    page = replace(SAME, unlike=unlike, tensors=0, elements=0, bit_equal=False)
    lines = [words(line) for line in shown(page)]
    assert "param.a float32 [2, 3] float32 [3, 2]" in lines
    assert lines[-1] == "not equal: no tensor is in both in the same shape and type"


def test_ages_are_told_by_the_time_given() -> None:
    assert "2m 05s ago" in " ".join(shown(ANATOMY))
    assert WHOLE.at_s == NOW_S - 125
