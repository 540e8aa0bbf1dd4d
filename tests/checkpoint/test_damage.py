"""Reading every byte finds what no listing shows, in every file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from tests.checkpoint.commits import FILE, commit, cut, flip
from tidemill import storage
from tidemill.checkpoint.blocks import BLOCK
from tidemill.checkpoint.damage import find_damage
from tidemill.checkpoint.inspect import manifest_of
from tidemill.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_whole_one_is_read_to_its_last_byte(tmp_path: Path) -> None:
    held = commit(tmp_path, 20)
    read: list[int] = []
    assert find_damage(held, read.append) == []
    assert sum(read) == sum(file.data for file in manifest_of(held).files.values()) > 0


@pytest.mark.parametrize("block", [0, 1])
def test_the_file_and_the_bytes_are_named(block: int, tmp_path: Path) -> None:
    held = commit(tmp_path, 20, tensors={"param.wide": torch.zeros(BLOCK // 4 + 5)})
    flip(held, block * BLOCK + 7)
    last = (BLOCK, BLOCK + 20)[block] - 1
    assert find_damage(held, lambda _: None) == [
        f"{FILE} has changed: bytes {block * BLOCK} to {last} do not match their checksum"
    ]


def test_changed_checksums_are_damage_too(tmp_path: Path) -> None:
    flip(held := commit(tmp_path, 20), -1)
    (flaw,) = find_damage(held, lambda _: None)
    assert flaw == f"{FILE} has changed: its block checksums are not what was written"


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    held = commit(tmp_path, 20)
    found = manifest_of(held)
    (tmp_path / held.place.path / "rank-00001.bin").write_bytes(b"")
    files = found.files | {"rank-00001.bin": found.files[FILE]}
    cut(held)
    flaws = find_damage(replace(held, manifest=replace(found, files=files)), lambda _: None)
    assert [flaw.partition(" ")[0] for flaw in flaws] == [FILE, "rank-00001.bin"]


def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = commit(tmp_path, 20)

    def fail(place: storage.Location) -> None:
        raise StorageError(f"cannot read {place}: no connection")

    monkeypatch.setattr(storage, "open_input", fail)
    with pytest.raises(StorageError, match="no connection"):
        find_damage(held, lambda _: None)
