"""Export: one process, proven bytes, names as the model gave them, and a file others can open."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch

from tests.checkpoint.states import HEADER, make_store, make_tensors, split
from tests.kit.bucket import HAVE_BUCKET, serve_bucket
from tests.kit.world import run_world
from tidemill import storage
from tidemill.checkpoint.export import export_safetensors, read_tensors
from tidemill.checkpoint.manifest import committed
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.spec.progress import Cursor, World
from tidemill.storage import Location, locate

if TYPE_CHECKING:
    from pathlib import Path

CURSOR = Cursor(step=42, samples=336)


def _save(world: World, uri: str) -> None:
    store = make_store(world, uri)
    store.save(split(make_tensors(1), world.rank, world.size, "export"), CURSOR, {})
    store.finish()
    store.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Location:
    _save(World(), str(tmp_path / "run"))
    return committed(locate(str(tmp_path / "run")))[0]


def _expected(*prefixes: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for prefix in prefixes
        for name, tensor in make_tensors(1).items()
        if name.startswith(prefix)
    }


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def test_what_many_ranks_saved_one_process_reads_whole(tmp_path: Path) -> None:
    run_world(_save, 3, str(tmp_path))
    (place,) = committed(locate(str(tmp_path)))
    assert _same(read_tensors(place, "param."), _expected("param."))
    assert _same(read_tensors(place, "exp_avg."), _expected("exp_avg."))
    assert _same(read_tensors(place, ""), make_tensors(1))
    assert read_tensors(place, "none.") == {}


def test_damage_is_noticed_before_anything_is_returned(checkpoint: Location) -> None:
    os.truncate((checkpoint / "rank-00000.bin").path, 100)
    with pytest.raises(CorruptCheckpoint, match=r"rank-00000\.bin has 100 bytes instead of"):
        read_tensors(checkpoint, "param.")


def test_safetensors_hold_fp32_weights_and_untouched_buffers(
    checkpoint: Location, tmp_path: Path
) -> None:
    weights = export_safetensors(checkpoint, locate(str(tmp_path)) / "out/deep", vocab=257)
    expected = {name: tensor.float() for name, tensor in _expected("param.").items()}
    found = safetensors.torch.load_file(weights.path)
    assert _same(found, expected | _expected("buffer."))
    config = json.loads((tmp_path / "out/deep/config.json").read_text())
    assert config == {
        "model": {"kind": "GptSpec", "layers": 2},
        "vocab": 257,
        "sequence": 8,
        "step": 42,
        "dtype": "float32",
        "run": HEADER.run,
        "digest": HEADER.digest,
    }
    assert sorted(path.name for path in (tmp_path / "out/deep").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_weights_are_cast_when_told(checkpoint: Location, tmp_path: Path) -> None:
    to = locate(str(tmp_path)) / "out"
    weights = export_safetensors(checkpoint, to, vocab=257, dtype="bfloat16")
    found = safetensors.torch.load_file(weights.path)
    assert torch.equal(found["wide"], make_tensors(1)["param.wide"].bfloat16())
    assert found["mask"].dtype is torch.bool


@pytest.mark.parametrize("dtype", ["int64", "float33"])
def test_a_type_that_cannot_hold_weights_is_refused(
    checkpoint: Location, tmp_path: Path, dtype: str
) -> None:
    with pytest.raises(CheckpointError, match=dtype):
        export_safetensors(checkpoint, locate(str(tmp_path)) / "out", vocab=257, dtype=dtype)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_nothing_is_overwritten_unless_told(
    checkpoint: Location, tmp_path: Path, name: str
) -> None:
    to = locate(str(tmp_path)) / "out"
    storage.publish(to / name, b"precious")
    with pytest.raises(StorageError, match=f"{name} exists; choose another directory"):
        export_safetensors(checkpoint, to, vocab=257)
    assert storage.read_bytes(to / name) == b"precious"
    export_safetensors(checkpoint, to, vocab=257, overwrite=True)
    assert storage.read_bytes(to / name) != b"precious"


def test_an_export_that_fails_leaves_nothing_half_written(
    checkpoint: Location, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StorageError, match="a file is in the way"):
        export_safetensors(checkpoint, locate(str(tmp_path)) / "out", vocab=257)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


if HAVE_BUCKET:

    def test_an_export_goes_to_a_bucket_as_well(checkpoint: Location, tmp_path: Path) -> None:
        with serve_bucket("tide") as endpoint:
            to = locate(f"s3://tide/out?endpoint_override={endpoint}&scheme=http")
            weights = export_safetensors(checkpoint, to, vocab=257)
            found = safetensors.torch.load(storage.read_bytes(weights))
            assert torch.equal(found["wide"], make_tensors(1)["param.wide"])
            with pytest.raises(StorageError, match="exists"):
                export_safetensors(checkpoint, to, vocab=257)
