"""Safetensors files are believed only if they add up; the rest is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidemill.checkpoint.foreign import LONGEST_HEADER, read_weights
from tidemill.checkpoint.fragments import StoredPiece
from tidemill.checkpoint.portable import INDEX, WEIGHTS
from tidemill.errors import CheckpointError
from tidemill.storage import locate


def entry(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    """What a header says of fp32 elements between two bytes."""
    shape = [(end - begin) // 4]
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end], **changes}


def leave(place: Path, header: Any, data: int = 8, length: int | None = None) -> Path:
    """Write a file whose header is `header`, as JSON unless it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(size.to_bytes(8, "little") + text + bytes(data))
    return place


def refuse(place: Path, *told: str) -> None:
    """Expect one line that names the key and holds all of `told`."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(locate(str(place)))
    text = str(caught.value)
    assert text.startswith("checkpoint.init_from: ")
    assert "\n" not in text
    assert len(text) < 600
    for part in told:
        assert part in text


def test_what_the_library_wrote_is_found_without_torch(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "n": torch.empty(0, 3), "s": torch.tensor(1.5)}
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS)
    script = (
        "import sys; from tidemill.storage import locate\n"
        "from tidemill.checkpoint.foreign import read_weights\n"
        f"held = read_weights(locate({str(tmp_path)!r}))\n"
        "print(sorted(held.tensors), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['a', 'n', 's'] False"

    raw = (tmp_path / WEIGHTS).read_bytes()
    for source in (tmp_path, tmp_path / WEIGHTS):
        held = read_weights(locate(str(source)))
        assert held.files == {WEIGHTS: len(raw)}
        assert held.place.path == str(tmp_path)
        (piece,) = held.tensors["a"].pieces
        assert (held.tensors["a"].shape, held.tensors["a"].dtype) == ((2, 3), "float32")
        assert raw[piece.offset : piece.offset + 24] == tensors["a"].numpy().tobytes()
        assert held.tensors["n"].pieces == ()
        assert held.tensors["s"].shape == ()
        assert held.tensors["s"].pieces[0].count == 1


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    place = leave(tmp_path / "theirs.safetensors", {"w": entry(0, 8)})
    held = read_weights(locate(str(place)))
    assert held.tensors["w"].pieces == (StoredPiece(0, 2, place.name, place.stat().st_size - 8),)


def test_one_file_comes_before_shards(tmp_path: Path) -> None:
    leave(tmp_path / WEIGHTS, {"w": entry(0, 8)})
    (tmp_path / INDEX).write_text("{}")
    assert read_weights(locate(str(tmp_path))).tensors.keys() == {"w"}


BAD = {
    "empty": (b"", 0, None, "its header is no JSON object"),
    "zip": (b"PK\x03\x04" * 9, 0, int.from_bytes(b"PK\x03\x04PK\x03\x04", "little"), "no safeten"),
    "longest": (b"{}", 0, LONGEST_HEADER + 1, "is no safetensors file"),
    "longer than the file": (b"{}", 0, 1000, "cut short: 10 bytes, and its header alone has 1000"),
    "no json": (b"{oops", 0, None, "its header is no JSON object"),
    "no text": (b"\xff\xfe{}", 0, None, "its header is no JSON object"),
    "a list": ([], 0, None, "its header is no JSON object"),
    "deep": (b"[" * 100_000, 0, None, "its header is no JSON object"),
    "long number": (b'{"w":' + b"1" * 5000 + b"}", 0, None, "its header is no JSON object"),
    "twice": (b'{"w": 1, "w": 2}', 0, None, "w is in it twice"),
    "cut": ({"w": entry(0, 16)}, 8, None, "cut short: "),
    "left": ({"w": entry(0, 4)}, 8, None, "its last 4 bytes belong to no tensor"),
    "overlap": ({"v": entry(0, 8), "w": entry(4, 8)}, 8, None, "w overlaps v"),
    "same": ({"v": entry(0, 8), "w": entry(0, 8)}, 8, None, "w overlaps v"),
    "gap": ({"v": entry(0, 4), "w": entry(8, 12)}, 12, None, "w leaves a gap after v"),
    "late": ({"w": entry(4, 8)}, 8, None, "w leaves a gap after the header"),
    "far": ({"w": entry(2**62, 2**62 + 8)}, 8, None, "w leaves a gap after the header"),
    "negative": ({"w": entry(-4, 4)}, 8, None, "entry of w is malformed"),
    "backwards": ({"w": entry(8, 0)}, 8, None, "malformed"),
    "wrong size": ({"w": entry(0, 8, shape=[3])}, 8, None, "w has 8 bytes, which do not hold F32"),
    "huge": ({"w": entry(0, 8, shape=[2**40, 2**40])}, 8, None, "w has 8 bytes"),
    "too huge": ({"w": entry(0, 8, shape=[2**64])}, 8, None, "malformed"),
    "many": ({"w": entry(0, 8, shape=[1] * 65)}, 8, None, "malformed"),
    "boolean": ({"w": entry(0, 4, shape=[True])}, 4, None, "malformed"),
    "fraction": ({"w": entry(0, 8, shape=[2.0])}, 8, None, "malformed"),
    "one offset": ({"w": entry(0, 8, data_offsets=[8])}, 8, None, "malformed"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2]}}, 8, None, "malformed"),
    "no entry": ({"w": 5}, 8, None, "w is of type None"),
    "unknown type": ({"w": entry(0, 8, dtype="F8_E4M3")}, 8, None, "w is of type F8_E4M3"),
    "odd type": ({"w": entry(0, 8, dtype=["F32"])}, 8, None, "w is of type ['F32']"),
    "lines": ({"a\nb\x1b[2J" + 999 * "w": 5}, 0, None, "a?b?[2Jwww"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_file_that_lies_is_refused(bad: str, tmp_path: Path) -> None:
    header, data, length, told = BAD[bad]
    refuse(leave(tmp_path / WEIGHTS, header, data, length).parent, WEIGHTS, told)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    place = tmp_path_factory.getbasetemp() / "any.safetensors"
    place.write_bytes(content)
    refuse(place)
    leave(place, content)
    if content.strip() != b"{}":
        refuse(place)


@pytest.mark.parametrize("size", [0, 7, 8, 20, 100])
def test_a_file_cut_anywhere_is_refused(size: int, tmp_path: Path) -> None:
    place = leave(tmp_path / "w.safetensors", {"w": entry(0, 400)}, 400)
    place.write_bytes(place.read_bytes()[:size])
    refuse(place)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "gone", "has neither model.safetensors nor model.safetensors.index.json")
    refuse(tmp_path / "gone.safetensors", "there is no such file", "name safetensors that can be")
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    refuse(tmp_path, "has neither")
    (tmp_path / "d.safetensors").mkdir()
    refuse(tmp_path / "d.safetensors", "d.safetensors")


def leave_shards(place: Path, weight_map: Any) -> Path:
    for name in ("v", "w"):
        leave(place / f"{name}.safetensors", {name: entry(0, 8)})
    (place / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return place


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    place = leave_shards(tmp_path, {"v": "v.safetensors", "w": "w.safetensors"})
    held = read_weights(locate(str(place)))
    assert held.files.keys() == {"v.safetensors", "w.safetensors"}
    assert {name: t.pieces[0].file for name, t in held.tensors.items()} == {
        "v": "v.safetensors",
        "w": "w.safetensors",
    }


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        (None, "its weight_map does not name files"),
        ({"v": 5}, "its weight_map does not name files"),
        ({"v": "../v.safetensors"}, "its weight_map does not name files"),
        ({"v": "/etc/passwd"}, "its weight_map does not name files"),
        ({"v": ".."}, "its weight_map does not name files"),
        ({"v": "gone.safetensors"}, "there is no such file"),
        ({"v": "v.safetensors", "x": "v.safetensors"}, "x is not in it"),
        ({"v": "v.safetensors", "w": "v.safetensors"}, "w is not in it"),
        ({"x": "w.safetensors"}, "w is not in the index"),
    ],
)
def test_an_index_that_lies_is_refused(weight_map: Any, told: str, tmp_path: Path) -> None:
    refuse(leave_shards(tmp_path, weight_map), told)


def test_an_index_that_is_no_index_is_refused(tmp_path: Path) -> None:
    place = leave_shards(tmp_path, {})
    for text in ("", "[]", '{"weight_map": {"v": "v", "v": "w"}}'):
        (place / INDEX).write_text(text)
        refuse(place, INDEX)
    with (place / INDEX).open("wb") as file:
        file.truncate(LONGEST_HEADER + 1)
    refuse(place, "too long for an index")
