"""Export: one process, proven bytes, names as the model gave them, and a file others can open."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from tests.checkpoint.states import HEADER, make_store, make_tensors, split, whole
from tests.kit.bucket import HAVE_BUCKET, Bucket, serve_flaky_bucket
from tests.kit.world import run_world
from tidemill import storage
from tidemill.checkpoint import export
from tidemill.checkpoint.export import export_safetensors, read_tensors
from tidemill.checkpoint.foreign import read_weights
from tidemill.checkpoint.manifest import committed
from tidemill.checkpoint.portable import WEIGHTS
from tidemill.errors import CheckpointError, CorruptCheckpoint, StorageError
from tidemill.spec.progress import Cursor, World
from tidemill.storage import Location, locate

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


# --- shards ----------------------------------------------------------------------------------

KIB = 2**-20
"""In GiB."""


def _names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def _load_shards(place: Path) -> dict[str, torch.Tensor]:
    """Read as `transformers` does: the index, then each file that it names."""
    index = json.loads((place / "model.safetensors.index.json").read_text())
    files = {name: load_file(place / name) for name in set(index["weight_map"].values())}
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * tensor.element_size()
        for held in files.values()
        for tensor in held.values()
    )
    assert set(_names(place)) == {*files, "config.json", "model.safetensors.index.json"}
    found = {name: files[file][name] for name, file in index["weight_map"].items()}
    assert sum(len(held) for held in files.values()) == len(found)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_hold_what_one_file_holds(
    checkpoint: Location, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = locate(str(tmp_path))
    one = export_safetensors(checkpoint, root / "one", vocab=257, dtype=dtype)
    monkeypatch.setattr(export, "BATCH", 1000)
    many = export_safetensors(
        checkpoint, root / "many", vocab=257, dtype=dtype, shard_gib=0.25 * KIB
    )
    assert many.name == "model.safetensors.index.json"
    assert _same(_load_shards(tmp_path / "many"), load_file(one.path))
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    configs = [(tmp_path / name / "config.json").read_bytes() for name in ("one", "many")]
    assert configs[0] == configs[1]


def test_the_size_of_a_batch_changes_no_byte(
    checkpoint: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = locate(str(tmp_path))
    for name, batch in (("a", 2**28), ("b", 64)):
        monkeypatch.setattr(export, "BATCH", batch)
        export_safetensors(checkpoint, root / name, vocab=257)
    assert storage.read_bytes(root / "a" / WEIGHTS) == storage.read_bytes(root / "b" / WEIGHTS)


def test_memory_does_not_grow_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"param.w{at}": torch.full((2**20,), float(at)) for at in range(8)}
    store = make_store(World(), str(tmp_path / "run"))
    store.save(whole(tensors), CURSOR, {})
    store.finish()
    store.close()
    (checkpoint,) = committed(locate(str(tmp_path / "run")))
    monkeypatch.setattr(export, "BATCH", 2**21)
    held: list[int] = []
    make = torch.empty

    def watch(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = make(*args, **kwargs)
        held.append(made.numel() * made.element_size())
        return made

    monkeypatch.setattr(torch, "empty", watch)
    weights = export_safetensors(checkpoint, locate(str(tmp_path)) / "out", vocab=257)
    monkeypatch.undo()
    assert sum(held) > 2**25
    assert max(held) <= export.content.WINDOW
    found = load_file(weights.path)
    assert all(torch.equal(found[f"w{at}"], tensors[f"param.w{at}"]) for at in range(8))


def test_an_earlier_export_goes_with_all_its_shards(checkpoint: Location, tmp_path: Path) -> None:
    to, out = locate(str(tmp_path)) / "out", tmp_path / "out"
    export_safetensors(checkpoint, to, vocab=257, shard_gib=KIB)
    (out / "tokenizer.json").write_text("theirs")
    many = _names(out)
    export_safetensors(checkpoint, to, vocab=257, overwrite=True)
    assert _names(out) == ["config.json", "model.safetensors", "tokenizer.json"]
    export_safetensors(checkpoint, to, vocab=257, shard_gib=KIB, overwrite=True)
    assert _names(out) == many
    export_safetensors(checkpoint, to, vocab=257, shard_gib=0.25 * KIB, overwrite=True)
    assert "model-00001-of-00002.safetensors" in many
    assert "model-00001-of-00002.safetensors" not in _names(out)


def test_shards_without_an_index_are_not_ours_to_replace(
    checkpoint: Location, tmp_path: Path
) -> None:
    to = locate(str(tmp_path)) / "out"
    storage.publish(to / "model-00001-of-00002.safetensors", b"precious")
    with pytest.raises(StorageError, match=r"model-00001-of-00002\.safetensors exists; choose"):
        export_safetensors(checkpoint, to, vocab=257)


# --- interruption ----------------------------------------------------------------------------


class Death(BaseException):
    """The process is gone."""


class Mortal:
    """Dies before a change of the disk; whatever is tried afterwards changes nothing any more.

    Args:
        patch: Puts it in the way of every change.
        changes: How many it lives to see.
    """

    def __init__(self, patch: pytest.MonkeyPatch, changes: int) -> None:
        self.left = changes
        for name in ("remove", "publish"):
            patch.setattr(storage, name, self.guard(getattr(storage, name)))
        patch.setattr(storage, "sync", self.guard(lambda _: None))  # the machine lives on
        patch.setattr(Path, "replace", self.guard(Path.replace))
        open_output = storage.open_output

        @contextlib.contextmanager
        def output(place: Location) -> Iterator[Any]:
            self.live()
            with open_output(place) as file:
                yield SimpleNamespace(write=self.guard(file.write))

        patch.setattr(storage, "open_output", output)

    def live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Death

    def guard(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any) -> Any:
            self.live()
            return change(*args)

        return guarded


def _load_if_whole(place: Path) -> dict[str, torch.Tensor] | None:
    """What a reader finds that looks at files, index and headers, and not at `config.json`."""
    try:
        held = read_weights(locate(str(place)))
    except CheckpointError:
        return None
    found: dict[str, torch.Tensor] = {}
    for name in held.files:
        found.update(load_file(place / name))
    return found


@pytest.mark.parametrize("shard_gib", [0.0, KIB])
@pytest.mark.parametrize("earlier_gib", [None, 0.0, 0.25 * KIB])
def test_an_export_that_is_killed_at_any_moment_never_looks_whole(
    checkpoint: Location, tmp_path: Path, shard_gib: float, earlier_gib: float | None
) -> None:
    out, to = tmp_path / "out", locate(str(tmp_path)) / "out"
    if earlier_gib is not None:
        earlier = locate(str(tmp_path)) / "earlier"
        export_safetensors(checkpoint, earlier, vocab=1, dtype="bfloat16", shard_gib=earlier_gib)
    new = _expected("buffer.")
    new |= {name: tensor.float() for name, tensor in _expected("param.").items()}
    old = {name: tensor.bfloat16() for name, tensor in _expected("param.").items()}
    old |= _expected("buffer.")
    changes = -1
    died = True
    while died:
        changes += 1
        shutil.rmtree(out, ignore_errors=True)
        if earlier_gib is not None:
            shutil.copytree(tmp_path / "earlier", out)
        with pytest.MonkeyPatch.context() as patch:
            mortal = Mortal(patch, changes)
            with contextlib.suppress(Death):
                export_safetensors(checkpoint, to, vocab=257, shard_gib=shard_gib, overwrite=True)
            died = mortal.left < 0
        found = _load_if_whole(out)
        if (out / "config.json").exists():
            config = json.loads((out / "config.json").read_text())
            assert _same(found or {}, new if config["vocab"] == 257 else old)
            assert died is (config["vocab"] == 1)
        else:
            assert found is None or _same(found, new) or _same(found, old)
        export_safetensors(checkpoint, to, vocab=257, shard_gib=shard_gib, overwrite=True)
        assert _same(_load_if_whole(out) or {}, new)
        assert not [name for name in _names(out) if name.startswith(".")]
    assert changes > 10


def test_damage_found_on_the_way_leaves_the_earlier_export(
    checkpoint: Location, tmp_path: Path
) -> None:
    out, to = tmp_path / "out", locate(str(tmp_path)) / "out"
    export_safetensors(checkpoint, to, vocab=257)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    file = Path((checkpoint / "rank-00000.bin").path)
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint, match="has changed"):
        export_safetensors(checkpoint, to, vocab=257, shard_gib=KIB, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def _objects(bucket: Bucket) -> list[str]:
    """What is in a bucket, without what stands for a directory there."""
    keys = bucket.keys()
    return [key for key in keys if not key.endswith("/")]


if HAVE_BUCKET:

    def test_an_export_goes_to_a_bucket_as_well(checkpoint: Location) -> None:
        with serve_flaky_bucket("tide", rate=0) as bucket:
            to = locate(bucket.uri("out"))
            weights = export_safetensors(checkpoint, to, vocab=257)
            found = safetensors.torch.load(storage.read_bytes(weights))
            assert torch.equal(found["wide"], make_tensors(1)["param.wide"])
            with pytest.raises(StorageError, match="exists"):
                export_safetensors(checkpoint, to, vocab=257)
            index = export_safetensors(checkpoint, to, vocab=257, shard_gib=KIB, overwrite=True)
            assert _objects(bucket) == [
                "out/config.json",
                "out/model-00001-of-00002.safetensors",
                "out/model-00002-of-00002.safetensors",
                "out/model.safetensors.index.json",
            ]
            assert read_weights(to).tensors.keys() == found.keys()
            assert storage.exists(index)

    def test_an_export_that_fails_leaves_nothing_in_a_bucket(
        checkpoint: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serve_flaky_bucket("tide", rate=0) as bucket:
            to = locate(bucket.uri("out"))
            export_safetensors(checkpoint, to, vocab=257)
            writes: list[int] = []

            def break_down(model: Any, shard: Any, file: Any) -> None:
                writes.append(file.write(b"a part of it"))
                if len(writes) == 2:
                    raise CorruptCheckpoint("rank-00000.bin has changed")

            monkeypatch.setattr(export, "_write", break_down)
            with pytest.raises(CorruptCheckpoint):
                export_safetensors(checkpoint, to, vocab=257, shard_gib=KIB, overwrite=True)
            assert len(writes) == 2
            assert _objects(bucket) == []
