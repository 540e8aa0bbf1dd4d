"""Text becomes bytes, found by path, directory, glob or URI; what cannot be read is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from tidemill.data import sources, text
from tidemill.data.sources import SourceFile
from tidemill.data.text import END_OF_DOCUMENT, TextSource, open_text
from tidemill.errors import DataError, StorageError
from tidemill.spec.training import TextSpec
from tidemill.storage import locate


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def names(source: TextSource, root: Path) -> list[str]:
    return [file.location.path[len(str(root)) + 1 :] for file in source.files]


def spec(*paths: str | Path, exclude: tuple[str, ...] = ()) -> TextSpec:
    return TextSpec(paths=[str(path) for path in paths], exclude=list(exclude))


def tokens(source: TextSource, file: SourceFile) -> list[int]:
    (document,) = source.documents(file)
    found = np.concatenate(list(document.pieces())).tolist()
    assert document.tokens == len(found)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "a.txt": "a",
            "b.md": "b",
            "in/c.txt": "c",
            "in/deep/d.txt": "d",
            "in/deep/e.bin": b"\xff",
            ".git/f.txt": "f",
            "in/.hidden.txt": "g",
        },
    )
    return tmp_path


def test_a_document_is_its_bytes_and_an_end(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "tide é"})
    source = open_text(spec(tmp_path / "a.txt"))
    assert source.vocab == 257
    assert source.byte_level
    assert tokens(source, source.files[0]) == [*"tide é".encode(), END_OF_DOCUMENT]
    (document,) = source.documents(source.files[0])
    assert document.hash == hashlib.sha256("tide é".encode()).digest()


def test_a_directory_is_walked_but_not_into_hidden_places(tree: Path) -> None:
    found = names(open_text(spec(tree)), tree)
    assert found == ["a.txt", "b.md", "in/c.txt", "in/deep/d.txt", "in/deep/e.bin"]


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.txt", ["a.txt"]),
        ("*/*.txt", ["in/c.txt"]),
        ("**/*.txt", ["a.txt", "in/c.txt", "in/deep/d.txt"]),
        ("in/**", ["in/c.txt", "in/deep/d.txt", "in/deep/e.bin"]),
        ("in/**/deep/?.txt", ["in/deep/d.txt"]),
        ("[ab].*", ["a.txt", "b.md"]),
        (".git/*", [".git/f.txt"]),
        ("in/.*", ["in/.hidden.txt"]),
    ],
)
def test_globs(tree: Path, glob: str, found: list[str]) -> None:
    assert names(open_text(spec(tree / glob)), tree) == found


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (("*.bin",), ["a.txt", "b.md", "in/c.txt", "in/deep/d.txt"]),
        (("deep",), ["a.txt", "b.md", "in/c.txt"]),
        (("in/",), ["a.txt", "b.md"]),
        (("in/*.txt",), ["a.txt", "b.md", "in/deep/d.txt", "in/deep/e.bin"]),
        (("in/deep", "a.*"), ["b.md", "in/c.txt"]),
        (("**/*.txt",), ["b.md", "in/deep/e.bin"]),
        (("deep/*",), ["a.txt", "b.md", "in/c.txt", "in/deep/d.txt", "in/deep/e.bin"]),
    ],
)
def test_exclude(tree: Path, exclude: tuple[str, ...], left: list[str]) -> None:
    assert names(open_text(spec(tree, exclude=exclude)), tree) == left


def test_exclude_is_matched_below_the_root_only(tree: Path) -> None:
    found = names(open_text(spec(tree / "in", exclude=("in",))), tree)
    assert found == ["in/c.txt", "in/deep/d.txt", "in/deep/e.bin"]


def test_a_file_named_twice_is_read_once(tree: Path) -> None:
    source = open_text(spec(tree / "a.txt", tree / "*.txt", f"file://{tree}/a.txt"))
    assert names(source, tree) == ["a.txt"]


def test_a_file_uri_and_a_glob_of_one(tree: Path) -> None:
    assert names(open_text(spec(f"file://{tree}")), tree)[0] == "a.txt"
    assert names(open_text(spec(f"file://{tree}/in/*.txt")), tree) == ["in/c.txt"]


def test_relative_paths_and_globs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(open_text(spec("a.txt", "*.md")), tree) == ["a.txt", "b.md"]


def test_a_name_that_looks_like_a_glob_is_a_name_first(tmp_path: Path) -> None:
    write(tmp_path, {"[x]*.txt": "literal", "x1.txt": "other"})
    assert names(open_text(spec(tmp_path / "[x]*.txt")), tmp_path) == ["[x]*.txt"]


def test_a_link_to_what_holds_it_ends(tmp_path: Path) -> None:
    write(tmp_path, {"in/a.txt": "a", "elsewhere/b.txt": "b"})
    (tmp_path / "in/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert names(open_text(spec(tmp_path / "in")), tmp_path) == ["in/a.txt", "in/link/b.txt"]


def test_no_paths_means_the_standard_library() -> None:
    source = open_text(TextSpec())
    found = [file.location.path for file in source.files]
    assert any(path.endswith("/asyncio/base_events.py") for path in found)
    assert all(path.endswith(".py") for path in found)
    for left_out in ("/site-packages/", "/test/", "/tests/", "/idle_test/", "/_sysconfigdata"):
        assert not any(left_out in path for path in found)
    assert sum(len(list(source.documents(file))) for file in source.files) > 300  # all are UTF-8


def test_the_standard_library_heeds_exclude() -> None:
    source = open_text(TextSpec(exclude=["asyncio", "argparse.py"]))
    found = [file.location.path for file in source.files]
    assert found
    assert not any("/asyncio/" in path or path.endswith("/argparse.py") for path in found)


def test_an_empty_file_holds_no_document(tmp_path: Path) -> None:
    write(tmp_path, {"empty.txt": ""})
    source = open_text(spec(tmp_path))
    assert list(source.documents(source.files[0])) == []


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("missing.txt", r"data\.paths: .*missing\.txt does not exist"),
        ("*.none", r"data\.paths: the glob .*\*\.none matches no file"),
        ("nowhere/*.txt", r"data\.paths: the glob .*nowhere/\*\.txt matches no file"),
        ("bare", r"data\.paths: .*bare holds no \* files"),
    ],
)
def test_a_path_that_names_nothing(tree: Path, path: str, problem: str) -> None:
    (tree / "bare").mkdir()
    with pytest.raises(DataError, match=problem) as caught:
        open_text(spec(tree / "a.txt", tree / path))
    assert "\n" not in str(caught.value)


def test_everything_excluded_is_an_error(tree: Path) -> None:
    for path in (tree, tree / "a.txt"):
        with pytest.raises(DataError, match=r"data\.paths.*data\.exclude"):
            open_text(spec(path, exclude=("*",)))


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(StorageError, match="ftp://"):
        open_text(spec("ftp://host/a.txt"))


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"tide\xffmill", 4),
        (b"\x80", 0),
        ("é".encode() + b"ab\xc3", 4),  # cut off at the end
        (b"12345678\xe2\x82", 8),
        (b"1234567\xe2\x82(", 7),  # broken across two reads
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 4, 8, 1000])
def test_what_is_not_utf8_is_named_with_its_offset(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    offset: int,
    chunk_bytes: int,
) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    write(tmp_path, {"bad.txt": content})
    source = open_text(spec(tmp_path))
    expected = rf"bad\.txt is not UTF-8 \(byte {offset}: .*convert it or add it to data\.exclude"
    with pytest.raises(DataError, match=expected):
        list(source.documents(source.files[0]))


def test_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK_BYTES", 3)
    write(tmp_path, {"a.txt": "ééééé tide"})
    source = open_text(spec(tmp_path))
    (document,) = source.documents(source.files[0])
    assert max(len(piece) for piece in document.pieces()) == 3
    assert tokens(source, source.files[0]) == [*"ééééé tide".encode(), END_OF_DOCUMENT]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "a"})
    source = open_text(spec(tmp_path))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(
        DataError, match=r"data\.paths: cannot read .*a\.txt: .*leave it out"
    ) as caught:
        list(source.documents(source.files[0]))
    assert "\n" not in str(caught.value)


def test_files_carry_what_tells_a_change(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "abc"})
    (file,) = sources.find_files([str(tmp_path)])
    assert file.size == 3
    assert file.modified_ns == (tmp_path / "a.txt").stat().st_mtime_ns
    assert file.location == locate(str(tmp_path / "a.txt"))
