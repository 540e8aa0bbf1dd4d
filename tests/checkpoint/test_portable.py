"""Safetensors are written as their own library reads them, shards as others expect them."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checkpoint.portable import (
    DTYPES,
    INDEX,
    WEIGHTS,
    Kind,
    belongs_to_export,
    encode_header,
    encode_index,
    itemsize_of,
    plan_shards,
    require_kind,
)
from tidemill.errors import CheckpointError

KINDS = {
    "a": Kind((3,), "float32"),
    "b": Kind((2, 2), "float64"),
    "c": Kind((5,), "bfloat16"),
    "d": Kind((), "bool"),
    "e": Kind((0, 4), "int64"),
}


def test_a_header_is_what_the_library_itself_writes() -> None:
    tensors = {
        "wide": torch.randn(3, 2),
        "flag": torch.tensor([True, False, True]),
        "half": torch.randn(5).half(),
        "long": torch.tensor(7),
        "ünï": torch.randn(2).double(),
    }
    kinds = {name: Kind(tuple(t.shape), str(t.dtype)[6:]) for name, t in tensors.items()}
    (shard,) = plan_shards(kinds, 0)
    written = encode_header(shard, kinds) + b"".join(
        tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name in shard.tensors
    )
    read = safetensors.torch.load(written)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert len(written) == len(safetensors.torch.save(tensors, {"format": "pt"}))


def test_element_types_are_those_of_torch() -> None:
    for code, name in DTYPES.items():
        assert getattr(torch, name).itemsize == itemsize_of(code) == Kind((1,), name).size


def test_a_type_that_the_format_has_not_is_refused() -> None:
    require_kind("w", "bfloat16")
    with pytest.raises(CheckpointError, match="w is complex32"):
        require_kind("w", "complex32")


def test_what_fits_goes_into_one_file() -> None:
    total = sum(kind.size for kind in KINDS.values())
    for most in (0, total, total + 1):
        (shard,) = plan_shards(KINDS, most)
        assert shard.name == WEIGHTS
        assert shard.tensors == ("b", "e", "a", "c", "d")
    assert len(plan_shards(KINDS, total - 1)) == 2
    assert [shard.name for shard in plan_shards({}, 1)] == [WEIGHTS]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 64))
def test_shards_hold_each_tensor_once_and_no_more_than_they_may(
    counts: list[int], most: int
) -> None:
    kinds = {f"t{at}": Kind((count,), "float32") for at, count in enumerate(counts)}
    shards = plan_shards(kinds, most)
    assert sorted(name for shard in shards for name in shard.tensors) == sorted(kinds)
    many = len(shards)
    for number, shard in enumerate(shards, start=1):
        size = sum(kinds[name].size for name in shard.tensors)
        assert size <= most or sum(kinds[name].size > 0 for name in shard.tensors) == 1
        assert shard.tensors
        if many > 1:
            assert shard.name == f"model-{number:05d}-of-{many:05d}.safetensors"
    index = json.loads(encode_index(shards, kinds))
    assert index["metadata"] == {"total_size": 4 * sum(counts)}
    assert index["weight_map"] == {name: s.name for s in shards for name in s.tensors}


def test_what_an_export_writes_is_known_by_name() -> None:
    ours = (WEIGHTS, INDEX, "config.json", "model-00002-of-00010.safetensors")
    assert all(belongs_to_export(name) for name in ours)
    theirs = ("adapter.safetensors", "model-1-of-2.safetensors", "tokenizer.json", "config.json5")
    assert not any(belongs_to_export(name) for name in theirs)
