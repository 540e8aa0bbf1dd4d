"""A corpus is packed once, the same on every machine, all of it or none; damage is repaired."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from tests.kit.bucket import HAVE_BUCKET, serve_bucket
from tidemill.data import cache, corpus, packing, shards
from tidemill.data.corpus import Corpus, open_stream, prepare_corpus
from tidemill.data.shards import Layout, PackedTokens
from tidemill.data.stream import Stream
from tidemill.data.text import END_OF_DOCUMENT, TextDocument
from tidemill.errors import DataError, StorageError
from tidemill.plan.batch import Slot
from tidemill.spec.base import digest_of
from tidemill.spec.placement import Tier
from tidemill.spec.training import DataSpec, SyntheticSpec, TextSpec, TokensSpec
from tidemill.storage import Location, locate, publish

SMALL = Layout(shard_tokens=64, batch_tokens=16)
TEXTS = [f"document {n}: " + "tide " * (n % 7) for n in range(40)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LAYOUT", SMALL)


@pytest.fixture
def storage(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "storage"))


@pytest.fixture
def texts(tmp_path: Path) -> TextSpec:
    return text_spec(tmp_path / "texts", TEXTS)


def text_spec(root: Path, contents: list[str], held_out: float = 0.2) -> TextSpec:
    root.mkdir(parents=True)
    for n, content in enumerate(contents):
        (root / f"{n:03d}.txt").write_text(content)
    return TextSpec(paths=[str(root)], held_out=held_out)


def tokens_spec(root: Path, files: list[list[list[int]]], **fields: Any) -> TokensSpec:
    root.mkdir(parents=True)
    for n, rows in enumerate(files):
        column = pa.array(rows, pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": column}), root / f"{n:03d}.parquet")
    return TokensSpec(paths=[str(root)], **{"vocab": 1000, "held_out": 0.2, **fields})


def packed(made: Corpus, split: str) -> list[int]:
    """All tokens of one side."""
    index = cache.read_index(locate(made.uri))
    assert index is not None
    reader = PackedTokens(made.uri, index.shards[split], index.layout)
    return reader.gather([0], reader.tokens)[0].tolist() if reader.tokens else []


def documents(made: Corpus, split: str) -> list[str]:
    """All texts of one side, in order."""
    found: list[bytes] = [b""]
    for token in packed(made, split):
        if token == END_OF_DOCUMENT:
            found.append(b"")
        else:
            found[-1] += bytes([token])
    assert found.pop() == b""
    return [content.decode() for content in found]


def everything_in(place: str | Path) -> list[str]:
    return sorted(str(path) for path in Path(place).rglob("*"))


def test_text_is_packed_whole_and_divided(texts: TextSpec, storage: Location) -> None:
    made = prepare_corpus(texts, storage)
    train, val = documents(made, "train"), documents(made, "val")
    assert sorted(train + val) == sorted(TEXTS)
    assert (made.train_documents, made.val_documents) == (len(train), len(val))
    assert made.train_tokens == sum(len(content) + 1 for content in train)
    assert made.val_tokens == sum(len(content) + 1 for content in val)
    assert 2 <= len(val) <= 16
    assert (made.vocab, made.byte_level) == (257, True)


def test_tokens_are_packed_whole_and_divided(tmp_path: Path, storage: Location) -> None:
    rows = [[n, n + 1, n + 2] for n in range(0, 900, 10)]
    made = prepare_corpus(tokens_spec(tmp_path / "in", [rows[:50], rows[50:]]), storage)
    train, val = packed(made, "train"), packed(made, "val")
    found = [both[n : n + 3] for both in (train, val) for n in range(0, len(both), 3)]
    assert sorted(found) == rows
    assert made.train_documents + made.val_documents == len(rows)
    assert 5 <= made.val_documents <= 36
    assert (made.vocab, made.byte_level) == (1000, False)


@pytest.mark.parametrize(
    ("vocab", "kind"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_shards_are_flat_uncompressed_arrow_of_the_smallest_type(
    tmp_path: Path, storage: Location, vocab: int, kind: str
) -> None:
    rows = [[*range(n, n + 50), vocab - 1] for n in range(10)]
    made = prepare_corpus(tokens_spec(tmp_path / "in", [rows], vocab=vocab), storage)
    index = json.loads(Path(made.uri, "corpus.json").read_text())
    total = 0
    for n, shard in enumerate(index["shards"]["train"]):
        with pa.memory_map(f"{made.uri}/{shard['name']}") as file:
            table = pa.ipc.open_file(file).read_all()
            assert table.schema == pa.schema([pa.field("tokens", kind, nullable=False)])
            assert table.num_rows == shard["tokens"]
            assert shard["tokens"] == 64 or n + 1 == len(index["shards"]["train"])
            assert max(len(chunk) for chunk in table.column(0).chunks) <= 16
            assert shard["size"] == file.size()
            assert max(table.column(0).to_pylist()) <= vocab - 1
            del table
        total += shard["tokens"]
    assert total == made.train_tokens > 64
    assert max(packed(made, "train")) == vocab - 1


def test_only_whole_windows_of_memory_are_held(texts: TextSpec, storage: Location) -> None:
    """Pieces of any size come out as batches of one size."""
    made = prepare_corpus(texts, storage)
    index = cache.read_index(locate(made.uri))
    assert index is not None
    assert [shard.tokens for shard in index.shards["train"][:-1]] == [64] * (
        (made.train_tokens - 1) // 64
    )


def test_names_and_places_do_not_matter(tmp_path: Path, storage: Location) -> None:
    one = prepare_corpus(text_spec(tmp_path / "one", TEXTS), storage)
    other = prepare_corpus(text_spec(tmp_path / "other/in", TEXTS[::-1]), storage)
    assert one.uri != other.uri
    assert one.digest == other.digest
    assert packed(one, "train") == packed(other, "train")


def test_parquet_file_names_do_not_matter(tmp_path: Path, storage: Location) -> None:
    files = [[[n, n + 1], [n + 2]] for n in range(0, 90, 3)]
    one = prepare_corpus(tokens_spec(tmp_path / "one", files), storage)
    other = prepare_corpus(tokens_spec(tmp_path / "other", files[::-1]), storage)
    assert one.digest == other.digest


def test_other_content_or_division_is_another_corpus(tmp_path: Path, storage: Location) -> None:
    made = [
        prepare_corpus(text_spec(tmp_path / "a", TEXTS), storage),
        prepare_corpus(text_spec(tmp_path / "b", [*TEXTS[:-1], TEXTS[-1] + "!"]), storage),
        prepare_corpus(text_spec(tmp_path / "c", TEXTS, held_out=0.4), storage),
        prepare_corpus(text_spec(tmp_path / "d", TEXTS[1:]), storage),
    ]
    assert len({one.digest for one in made}) == len(made)


def test_the_digest_is_fixed_for_good(tmp_path: Path, storage: Location) -> None:
    """A later version must recognise a corpus that this one packed."""
    made = prepare_corpus(text_spec(tmp_path / "in", ["flood", "ebb", "slack"], 0.3), storage)
    sides = [packed(made, split) for split in ("train", "val")]
    content = "257 " + " ".join(
        f"{len(side)} {hashlib.sha256(np.array(side, '<u2').tobytes()).hexdigest()}"
        for side in sides
    )
    assert made.digest == hashlib.sha256(content.encode()).hexdigest()
    assert documents(made, "val") == ["ebb"]
    assert documents(made, "train") == ["slack", "flood"]


def test_where_data_may_be_does_not_make_them_others(texts: TextSpec, storage: Location) -> None:
    made_up = SyntheticSpec(vocab=9, samples=20)
    for spec in (texts, made_up):
        trusted = replace(spec, tier=Tier.secure)
        assert prepare_corpus(trusted, storage).digest == prepare_corpus(spec, storage).digest
    # As it was before there was a tier.
    plain = {"variant": "SyntheticSpec", "vocab": 9, "samples": 20, "ragged": 0.0}
    assert prepare_corpus(made_up, storage).digest == digest_of(plain)


def test_a_document_keeps_its_side_when_others_come(tmp_path: Path, storage: Location) -> None:
    few = prepare_corpus(text_spec(tmp_path / "few", TEXTS), storage)
    more = [*TEXTS, *(f"more {n}" for n in range(100))]
    many = prepare_corpus(text_spec(tmp_path / "many", more), storage)
    assert set(documents(few, "val")) <= set(documents(many, "val"))
    assert set(documents(few, "train")) <= set(documents(many, "train"))


def test_copies_of_a_document_are_on_one_side(tmp_path: Path, storage: Location) -> None:
    made = prepare_corpus(text_spec(tmp_path / "in", TEXTS * 2), storage)
    assert not set(documents(made, "val")) & set(documents(made, "train"))
    assert len(documents(made, "val")) == 2 * len(set(documents(made, "val")))


@pytest.mark.parametrize("held_out", [1e-9, 0.5])
@pytest.mark.parametrize("seed", range(12))
def test_two_documents_give_each_side_one(
    tmp_path: Path, storage: Location, held_out: float, seed: int
) -> None:
    spec = text_spec(tmp_path / "in", [f"first {seed}", f"second {seed}"], held_out)
    made = prepare_corpus(spec, storage)
    assert (made.train_documents, made.val_documents) == (1, 1)


@pytest.mark.parametrize("contents", [["one and only, tide in"], ["twice, tide"] * 2])
def test_one_document_gives_its_tail(
    tmp_path: Path, storage: Location, contents: list[str]
) -> None:
    made = prepare_corpus(text_spec(tmp_path / "in", contents, held_out=0.25), storage)
    both = packed(made, "train") + packed(made, "val")
    assert bytes(token for token in both if token != END_OF_DOCUMENT).decode() == "".join(contents)
    assert made.val_tokens == len(both) // 4
    assert made.train_documents >= 1
    assert made.val_documents == 1


def test_a_short_tail_still_makes_a_sample(tmp_path: Path, storage: Location) -> None:
    made = prepare_corpus(text_spec(tmp_path / "in", ["a tide"], held_out=0.01), storage)
    assert made.val_tokens == 2


def test_nothing_is_held_out_if_nothing_is_asked_for(tmp_path: Path, storage: Location) -> None:
    spec = text_spec(tmp_path / "in", TEXTS, held_out=0.0)
    made = prepare_corpus(spec, storage)
    assert (made.val_tokens, made.val_documents) == (0, 0)
    assert made.train_documents == len(TEXTS)
    assert open_stream(spec, made, seed=0, sequence=8, split="val").samples == 0


def test_a_prepared_corpus_is_used_again(
    texts: TextSpec, storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare_corpus(texts, storage)
    before = {path: Path(path).stat().st_mtime_ns for path in everything_in(storage.path)}
    monkeypatch.setattr(corpus, "survey", pytest.fail)
    assert prepare_corpus(texts, storage) == made
    assert {path: Path(path).stat().st_mtime_ns for path in everything_in(storage.path)} == before


def test_the_same_files_by_another_spelling_are_found(
    texts: TextSpec, storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare_corpus(texts, storage)
    monkeypatch.setattr(corpus, "survey", pytest.fail)
    spelt = TextSpec(paths=[f"file://{texts.paths[0]}/*.txt"], held_out=texts.held_out)
    assert prepare_corpus(spelt, storage) == made


def test_the_same_files_divided_otherwise_are_packed_anew(
    texts: TextSpec, storage: Location
) -> None:
    made = prepare_corpus(texts, storage)
    other = prepare_corpus(TextSpec(paths=texts.paths, held_out=0.0), storage)
    assert other.uri != made.uri
    assert (made.val_documents > 0, other.val_documents) == (True, 0)


def test_a_changed_file_makes_another_corpus(texts: TextSpec, storage: Location) -> None:
    made = prepare_corpus(texts, storage)
    path = Path(texts.paths[0], "000.txt")
    path.write_text(path.read_text().upper())  # of the same size
    os.utime(path, ns=(1, 1))
    other = prepare_corpus(texts, storage)
    assert other.uri != made.uri
    assert other.digest != made.digest


def _cut(made: Corpus) -> None:
    path = Path(made.uri, "train-00001.arrow")
    path.write_bytes(path.read_bytes()[:-1])


def _lose_shard(made: Corpus) -> None:
    Path(made.uri, "val-00000.arrow").unlink()


def _tear_index(made: Corpus) -> None:
    path = Path(made.uri, "corpus.json")
    path.write_text(path.read_text()[:40])


def _lose_index(made: Corpus) -> None:
    Path(made.uri, "corpus.json").unlink()


def _age_index(made: Corpus) -> None:
    path = Path(made.uri, "corpus.json")
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 0'))


@pytest.mark.parametrize("damage", [_cut, _lose_shard, _tear_index, _lose_index, _age_index])
def test_a_damaged_corpus_is_built_again(
    texts: TextSpec, storage: Location, damage: Callable[[Corpus], None]
) -> None:
    made = prepare_corpus(texts, storage)
    before = packed(made, "train") + packed(made, "val")
    damage(made)
    assert prepare_corpus(texts, storage) == made
    assert packed(made, "train") + packed(made, "val") == before
    assert [path.name for path in Path(made.uri).parent.iterdir()] == [Path(made.uri).name]


def test_what_a_killed_driver_left_long_ago_is_removed(texts: TextSpec, storage: Location) -> None:
    old = Path(storage.path, "cache", ".0123.abc")
    new = Path(storage.path, "cache", ".0123.def")
    for path in (old, new):
        path.mkdir(parents=True)
        (path / "train-00000.arrow").touch()
    long_ago = time.time() - 2 * cache.ABANDONED_S
    os.utime(old, (long_ago, long_ago))
    prepare_corpus(texts, storage)
    assert not old.exists()
    assert new.exists()


def _prepare_in_child(spec: DataSpec, storage: str, gate: Any, answers: Any) -> None:
    gate.wait()
    answers.put(prepare_corpus(spec, locate(storage)))


def test_two_processes_at_once_give_one_corpus(texts: TextSpec, storage: Location) -> None:
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=_prepare_in_child, args=(texts, storage.uri, gate, answers))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    found = [answers.get(timeout=120) for _ in children]
    for child in children:
        child.join()
        assert child.exitcode == 0
    answers.close()
    answers.join_thread()
    assert found[0] == found[1]
    assert [path.name for path in Path(storage.path, "cache").iterdir()] == [
        Path(found[0].uri).name
    ]
    assert prepare_corpus(texts, storage) == found[0]


def test_who_comes_second_takes_what_is_there(
    texts: TextSpec, storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find nothing, both build; the slower one gives up its own."""
    both_built = threading.Barrier(2, timeout=60)
    real = packing.pack

    def pack_together(*args: Any, **kwargs: Any) -> Any:
        sides = real(*args, **kwargs)
        both_built.wait()
        return sides

    monkeypatch.setattr(corpus, "pack", pack_together)
    found: list[Corpus] = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare_corpus(texts, storage)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert [path.name for path in Path(storage.path, "cache").iterdir()] == [
        Path(found[0].uri).name
    ]


def _bad_text(root: Path) -> DataSpec:
    spec = text_spec(root, TEXTS)
    (root / "bad.txt").write_bytes(b"abc\xff")
    return spec


FAILURES: dict[str, tuple[Callable[[Path], DataSpec], str]] = {
    "missing": (lambda root: TextSpec(paths=[str(root / "none")]), "does not exist"),
    "no match": (lambda root: TextSpec(paths=[str(root / "*.txt")]), "matches no file"),
    "empty text": (lambda root: text_spec(root, ["", ""]), "all 2 files are empty"),
    "empty rows": (lambda root: tokens_spec(root, [[[]], []]), "all 2 files are empty"),
    "bad token": (
        lambda root: tokens_spec(root, [[[1] * 90, [2] * 90, [1000]]]),
        r"data\.vocab: row 2 ",
    ),
    "bad byte": (_bad_text, r"bad\.txt is not UTF-8 \(byte 3"),
    "too short": (
        lambda root: text_spec(root, ["too short"], held_out=0.0),
        r"10 tokens are left to train on and one sample of batch\.sequence=64 takes 65",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("storage_exists", [False, True])
def test_a_failed_preparation_leaves_nothing(
    tmp_path: Path, storage: Location, failure: str, storage_exists: bool
) -> None:
    make, problem = FAILURES[failure]
    spec = make(tmp_path / "in")
    if storage_exists:
        Path(storage.path).mkdir()
    before = everything_in(tmp_path)
    with pytest.raises(DataError, match=problem) as caught:
        prepare_corpus(spec, storage, sequence=64)
    assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before


def test_an_error_while_writing_leaves_nothing(
    texts: TextSpec, storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    real = shards.open_output

    def full_disk(location: Location) -> Any:
        if len(begun) == 2:
            raise StorageError(f"cannot write {location}: no space left on device")
        begun.append(location.path)
        return real(location)

    monkeypatch.setattr(shards, "open_output", full_disk)
    with pytest.raises(StorageError, match="no space"):
        prepare_corpus(texts, storage)
    assert len(begun) == 2
    assert not Path(storage.path).exists()


@pytest.mark.parametrize("when", ["between", "within"])
def test_a_file_that_changes_meanwhile_is_refused(
    texts: TextSpec, storage: Location, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = Path(texts.paths[0], "007.txt")

    def change() -> None:
        path.write_text("something else, and longer than what was there before")

    if when == "between":
        real_divide = packing.divide

        def divide(*args: Any) -> Any:
            change()
            return real_divide(*args)

        monkeypatch.setattr(corpus, "divide", divide)
    else:
        real_pieces = TextDocument.pieces

        def pieces(self: TextDocument) -> Iterator[Any]:
            if self.file.location.path == str(path):
                change()
            return real_pieces(self)

        monkeypatch.setattr(TextDocument, "pieces", pieces)
    with pytest.raises(DataError, match=r"007\.txt changed while it was being packed"):
        prepare_corpus(texts, storage)
    assert not Path(storage.path).exists()


def test_a_cached_corpus_too_small_for_longer_samples_is_kept(
    texts: TextSpec, storage: Location
) -> None:
    made = prepare_corpus(texts, storage, sequence=16)
    with pytest.raises(DataError, match=r"batch\.sequence=100000"):
        prepare_corpus(texts, storage, sequence=100_000)
    assert prepare_corpus(texts, storage, sequence=16) == made


def test_a_stream_of_a_corpus_that_is_gone_is_refused(texts: TextSpec, storage: Location) -> None:
    made = prepare_corpus(texts, storage)
    _lose_index(made)
    with pytest.raises(DataError, match="gone or damaged"):
        open_stream(texts, made, seed=0, sequence=8, split="train")


def test_synthetic_needs_no_storage(storage: Location) -> None:
    spec = SyntheticSpec(vocab=32, samples=100)
    made = prepare_corpus(spec, storage)
    assert (made.uri, made.vocab, made.byte_level) == ("", 32, False)
    assert (made.train_documents, made.val_documents) == (100, 10)
    assert not Path(storage.path).exists()
    assert prepare_corpus(SyntheticSpec(vocab=32, samples=5), storage).val_documents == 1
    assert made.digest != prepare_corpus(SyntheticSpec(vocab=32, samples=101), storage).digest
    assert open_stream(spec, made, seed=0, sequence=8, split="train").samples == 100
    assert open_stream(spec, made, seed=0, sequence=8, split="val").samples == 10


# An object store: no rename, and no directories to make.


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    """A place in memory that is not local, found again by its URI."""
    memory: Any = fsspec.filesystem("memory")
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(memory))
    real = locate

    def find(uri: str) -> Location:
        path = uri.removeprefix("s3://")
        return Location(uri, filesystem, path) if path != uri else real(uri)

    for module in (corpus, shards):
        monkeypatch.setattr(module, "locate", find)
    yield find("s3://tidemill-corpus-test/run")
    if memory.exists("tidemill-corpus-test"):
        memory.rm("tidemill-corpus-test", recursive=True)


def names_in(place: Location) -> set[str]:
    selector = pafs.FileSelector(place.path, recursive=True, allow_not_found=True)
    infos: Any = place.filesystem.get_file_info(selector)
    files = (info.path for info in infos if info.type is pafs.FileType.File)
    return {path.split(place.path + "/", 1)[1] for path in files}


def test_an_object_store_holds_what_the_index_names(
    texts: TextSpec, bucket: Location, storage: Location
) -> None:
    far, near = prepare_corpus(texts, bucket), prepare_corpus(texts, storage)
    assert far.digest == near.digest
    fingerprint = far.uri.rsplit("/", 1)[1]
    index = cache.find(bucket / "cache" / fingerprint)
    assert index is not None
    expected = {"corpus.json", *(shard.name for shard in index.files())}
    assert names_in(bucket) == {f"cache/{fingerprint}/{name}" for name in expected}
    assert prepare_corpus(texts, bucket) == far
    assert len(names_in(bucket)) == len(expected)


def test_samples_are_the_same_from_an_object_store(
    texts: TextSpec, bucket: Location, storage: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "REMOTE_BATCHES", 3)  # fewer than one slot needs
    far, near = (
        open_stream(texts, prepare_corpus(texts, place), seed=3, sequence=24, split="train")
        for place in (bucket, storage)
    )
    for first in range(0, 200, 16):
        one, other = (stream.take(first, Slot(start=0, size=16)) for stream in (far, near))
        assert np.array_equal(one.inputs, other.inputs)
        assert np.array_equal(one.targets, other.targets)


def test_a_failure_leaves_an_object_store_empty(
    texts: TextSpec, bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shards.open_output

    def refuse(location: Location) -> Any:
        if location.name == "train-00002.arrow":
            raise StorageError(f"cannot write {location}: access denied")
        return real(location)

    monkeypatch.setattr(shards, "open_output", refuse)
    with pytest.raises(StorageError, match="access denied"):
        prepare_corpus(texts, bucket)
    assert names_in(bucket) == set()


def test_who_comes_second_to_an_object_store_takes_what_is_there(
    texts: TextSpec, bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing.pack
    others: list[Corpus] = []

    def be_overtaken(*args: Any, **kwargs: Any) -> Any:
        sides = real(*args, **kwargs)
        monkeypatch.setattr(corpus, "pack", real)
        others.append(prepare_corpus(texts, bucket))
        return sides

    monkeypatch.setattr(corpus, "pack", be_overtaken)
    assert [prepare_corpus(texts, bucket)] == others
    index = cache.find(bucket / "cache" / others[0].uri.rsplit("/", 1)[1])
    assert index is not None
    assert len(names_in(bucket)) == 1 + len(index.files())


if HAVE_BUCKET:

    @pytest.fixture(scope="module")
    def endpoint() -> Iterator[str]:
        with serve_bucket("tide") as endpoint:
            yield endpoint

    def test_from_bucket_to_bucket(endpoint: str, texts: TextSpec, storage: Location) -> None:
        options = f"endpoint_override={endpoint}&scheme=http"
        for path in Path(texts.paths[0]).iterdir():
            publish(locate(f"s3://tide/in/{path.name}?{options}"), path.read_bytes())
        spec = TextSpec(paths=[f"s3://tide/in/*.txt?{options}"], held_out=texts.held_out)
        bucket = locate(f"s3://tide/runs?{options}")
        far, near = prepare_corpus(spec, bucket), prepare_corpus(texts, storage)
        assert far.digest == near.digest
        assert prepare_corpus(spec, bucket) == far
        streams: list[Stream] = [
            open_stream(texts, made, seed=3, sequence=24, split="train") for made in (far, near)
        ]
        slot = Slot(start=0, size=16)
        streams[0].take(0, slot)
        again = pickle.loads(pickle.dumps(streams[0]))  # noqa: S301 - our own bytes
        for stream in (streams[0], again):
            assert np.array_equal(stream.take(16, slot).inputs, streams[1].take(16, slot).inputs)

    def test_a_missing_path_in_a_bucket_is_named(endpoint: str, storage: Location) -> None:
        options = f"endpoint_override={endpoint}&scheme=http"
        with pytest.raises(DataError, match=r"s3://tide/none.* does not exist"):
            prepare_corpus(TextSpec(paths=[f"s3://tide/none?{options}"]), storage)
        with pytest.raises(DataError, match=r"s3://tide/none/\*.* matches no file"):
            prepare_corpus(TextSpec(paths=[f"s3://tide/none/*.txt?{options}"]), storage)
