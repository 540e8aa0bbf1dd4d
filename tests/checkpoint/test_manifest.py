"""The manifest: a strict round trip, errors that name the key, and the order of checkpoints."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.checkpoint.states import HEADER, SCALARS
from tidemill import storage
from tidemill.checkpoint.fragments import StoredPiece, StoredTensor
from tidemill.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    StoredFile,
    checkpoint_name,
    committed,
    decode,
    directories,
    encode,
    parse_name,
    read_manifest,
)
from tidemill.checkpoint.sealed import seal
from tidemill.errors import CheckpointError, CorruptCheckpoint
from tidemill.spec.progress import Cursor
from tidemill.storage import locate

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = Manifest(
    **dataclasses.asdict(HEADER),
    cursor=Cursor(step=100, samples=6400),
    world=2,
    attempt=3,
    saved_at_s=1.5e9,
    origin={"run": "ebb", "step": 3},
    metrics={"loss": 2.25, "grad_norm": None},
    scalars=SCALARS,
    tensors={
        "param.w": StoredTensor(
            (2, 3), "float32", (StoredPiece(0, 4, "r0", 0), StoredPiece(4, 2, "r1", 64))
        ),
        "buffer.none": StoredTensor((0,), "int64", ()),
        "buffer.one": StoredTensor((), "bfloat16", (StoredPiece(0, 1, "r1", 128),)),
    },
    files={"r0": StoredFile(48, 16, "a" * 64), "r1": StoredFile(162, 130, "b" * 64)},
)


def _plain() -> dict[str, Any]:
    return json.loads(encode(EXAMPLE))["manifest"]


def test_the_round_trip_is_exact() -> None:
    assert decode(encode(EXAMPLE), "here") == EXAMPLE
    assert encode(decode(encode(EXAMPLE), "here")) == encode(EXAMPLE)
    assert EXAMPLE.size == 210


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Manifest)])
def test_a_missing_key_is_named(key: str) -> None:
    plain = _plain()
    del plain[key]
    with pytest.raises(CorruptCheckpoint, match=rf"^here/manifest\.json: {key} is missing$"):
        decode(seal(plain), "here")


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Manifest)])
def test_a_value_of_the_wrong_type_is_named(key: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=rf"^here/manifest\.json: {key} cannot be None$"):
        decode(seal(_plain() | {key: None}), "here")


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("cursor",), {"step": 1}, r"cursor\.samples is missing"),
        (("tensors", "param.w"), {"shape": [1]}, r"tensors\.param\.w\.pieces is missing"),
        (("tensors", "param.w", "shape"), ["x"], r"tensors\.param\.w\.shape cannot be 'x'"),
        (("tensors", "param.w", "pieces"), [[0, 1]], r"tensors\.param\.w\.pieces: not \[start"),
        (("tensors", "param.w", "pieces"), [[0, 0, "r", 0]], r"param\.w\.pieces: not \[start"),
        (("tensors", "param.w", "pieces"), [[-1, 1, "r", 0]], r"param\.w\.pieces: not \[start"),
        (("files", "r0"), {"size": 1, "data": 0}, r"files\.r0: 1 bytes cannot hold 0 of tensors"),
        (("files", "r0"), {"size": 33, "data": 1}, r"files\.r0\.sha256 is missing"),
    ],
)
def test_a_wrong_value_deep_inside_is_named(
    path: tuple[str, ...], value: Any, complaint: str
) -> None:
    plain = _plain()
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(CorruptCheckpoint, match=complaint):
        decode(seal(plain), "here")


def test_a_later_schema_is_refused_as_that() -> None:
    with pytest.raises(CorruptCheckpoint, match=r"schema 3 is unknown .* use the version that"):
        decode(seal({"schema": 3, "what": "ever"}), "here")


def test_a_scalar_that_is_not_json_is_named() -> None:
    with pytest.raises(CheckpointError, match="scalar betas"):
        encode(dataclasses.replace(EXAMPLE, scalars={"betas": (0.9, 0.95)}))


def test_a_missing_manifest_is_a_corrupt_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint, match=r"manifest\.json: there is no such file"):
        read_manifest(locate(str(tmp_path)))


def test_a_manifest_is_read_from_its_directory(tmp_path: Path) -> None:
    storage.publish(locate(str(tmp_path)) / MANIFEST, encode(EXAMPLE))
    assert read_manifest(locate(str(tmp_path))) == EXAMPLE


def test_names_sort_as_numbers_and_strange_ones_are_left_alone(tmp_path: Path) -> None:
    run = locate(str(tmp_path))
    held = [(9, 1), (10, 2), (10, 1), (12345678901, 1), (11, 1)]
    for step, attempt in held:
        storage.publish(run / "checkpoints" / checkpoint_name(step, attempt) / MANIFEST, b"")
    storage.remove(run / "checkpoints" / checkpoint_name(11, 1) / MANIFEST)
    storage.publish(run / "checkpoints/step-1-a1" / MANIFEST, b"")
    storage.publish(run / "checkpoints/step-0000000013-a0001", b"a file")
    found = [parse_name(place.name) for place in committed(run)]
    assert found == [(12345678901, 1), (10, 2), (10, 1), (9, 1)]
    assert [parse_name(place.name) for place in directories(run)] == [
        (12345678901, 1),
        (11, 1),
        (10, 2),
        (10, 1),
        (9, 1),
    ]
    assert checkpoint_name(100, 1) == "step-0000000100-a0001"


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert committed(locate(str(tmp_path)) / "none") == []


def test_reading_manifests_needs_no_torch() -> None:
    code = "import sys, tidemill.checkpoint.manifest; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
