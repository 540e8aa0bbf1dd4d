"""A corpus: documents packed once, by the driver, into a directory that every rank then reads.

Files are packed in the order of their content's hash, so names and paths play no part: the same
documents give the same tokens and the same digest on every machine. A directory counts as a corpus
once it has its `corpus.json`, which is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from pyarrow import fs as pafs

from tidemill.data.packing import Side, divide, pack, survey
from tidemill.data.shards import Layout, PackedTokens, Shard
from tidemill.data.sources import Source
from tidemill.data.stream import Split, Stream, SyntheticStream, TokenStream
from tidemill.data.text import open_text
from tidemill.data.tokens import open_tokens
from tidemill.errors import DataError, StorageError
from tidemill.spec.base import digest_of, to_plain
from tidemill.spec.training import DataSpec, SyntheticSpec, TextSpec, TokensSpec
from tidemill.storage import (
    Location,
    children,
    exists,
    explained,
    locate,
    make_directory,
    publish,
    read_bytes,
    remove,
)

INDEX = "corpus.json"
SCHEMA = 1
CACHE = "cache"
LAYOUT = Layout()
ABANDONED_S = 24 * 3600

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What a run learns from, ready to be read by any process that reaches its storage.

    Attributes:
        uri: Directory of packed shards; empty for made-up data.
        vocab: Number of distinct tokens; every token is in [0, vocab).
        digest: sha256 of the content: of both splits' tokens and the vocabulary's size.
        train_tokens: Tokens to train on; 0 for made-up data, whose samples have any length.
        val_tokens: Tokens held out; 0 likewise.
        train_documents: Documents to train on; for made-up data, samples per epoch.
        val_documents: Documents held out; for made-up data, samples. A corpus of one document
            counts it on both sides, because its tail is held out.
        byte_level: Whether tokens are bytes, so that loss can be told in bits per byte.
    """

    uri: str
    vocab: int
    digest: str
    train_tokens: int
    val_tokens: int
    train_documents: int
    val_documents: int
    byte_level: bool

    def bits_per_byte(self, loss: float) -> float | None:
        """Turn a validation loss into bits per byte of text; None unless tokens are bytes.

        The bits spent on ends of documents count, their tokens do not: they are no bytes.

        Args:
            loss: Mean over held-out targets, in nats.
        """
        if not self.byte_level or self.val_tokens <= self.val_documents:
            return None
        return loss / math.log(2) * self.val_tokens / (self.val_tokens - self.val_documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """What `corpus.json` says."""

    corpus: Corpus
    layout: Layout
    shards: dict[str, list[Shard]]


def prepare_corpus(spec: DataSpec, storage: Location, *, sequence: int = 2) -> Corpus:
    """Pack the documents of `spec` below `storage`, or find them packed already.

    Runs in the driver, before anything is started. Two drivers may prepare the same corpus at once.

    Args:
        spec: Where the documents are.
        storage: The run's storage; the corpus goes to `cache/<fingerprint>` below it.
        sequence: Tokens per sample; the training side must hold at least one whole sample.

    Raises:
        DataError: The documents are missing, unreadable, malformed or too few. Nothing is left.
        StorageError: A source or the storage cannot be reached.
    """
    match spec:
        case SyntheticSpec():
            return _synthetic(spec)
        case TextSpec():
            source: Source = open_text(spec)
            held_out = spec.held_out
        case TokensSpec():
            source = open_tokens(spec)
            held_out = spec.held_out
        case _:
            raise TypeError(f"no corpus for {type(spec).__name__}")
    target = storage / CACHE / _fingerprint(spec, source)
    index = _intact(target)
    if index is None:
        logger.info("packing %d files into %s", len(source.files), target)
        index = _build(source, held_out, storage, target, sequence)
    _require_sample(index.corpus, sequence)
    return index.corpus


def open_stream(
    spec: DataSpec, corpus: Corpus, *, seed: int, sequence: int, split: Split
) -> Stream:
    """Open one side of a prepared corpus, in any process.

    Args:
        spec: As given to `prepare_corpus`.
        corpus: What it returned.
        seed: The run's seed; decides the order of training samples.
        sequence: Tokens per sample.
        split: `train`, or `val` for the documents held out, of which there may be none.

    Raises:
        DataError: The packed corpus is gone or damaged.
    """
    if isinstance(spec, SyntheticSpec):
        return SyntheticStream(
            vocab=spec.vocab,
            samples=corpus.train_documents if split == "train" else corpus.val_documents,
            ragged=spec.ragged,
            seed=seed,
            sequence=sequence,
            split=split,
        )
    index = _read_index(locate(corpus.uri))
    if index is None or index.corpus.digest != corpus.digest:
        raise DataError(
            f"the packed corpus {corpus.uri} is gone or damaged; start again to have it rebuilt"
        )
    tokens = PackedTokens(corpus.uri, index.shards[split], index.layout)
    return TokenStream(tokens, seed=seed, sequence=sequence, split=split)


def _synthetic(spec: SyntheticSpec) -> Corpus:
    """The corpus of made-up samples, which is nowhere; validation has a tenth as many."""
    return Corpus(
        uri="",
        vocab=spec.vocab,
        digest=digest_of(to_plain(spec)),
        train_tokens=0,
        val_tokens=0,
        train_documents=spec.samples,
        val_documents=max(1, spec.samples // 10),
        byte_level=False,
    )


def _fingerprint(spec: DataSpec, source: Source) -> str:
    """Name of the cached corpus: the files as they are now, and what is made of them."""
    plain = {key: value for key, value in to_plain(spec).items() if key not in {"paths", "exclude"}}
    files = [[file.location.uri, file.size, file.modified_ns] for file in source.files]
    return digest_of({"schema": SCHEMA, "spec": plain, "files": files})[:32]


def _require_sample(corpus: Corpus, sequence: int) -> None:
    """Raise `DataError` unless there is a whole sample to train on."""
    if corpus.train_tokens < sequence + 1:
        raise DataError(
            f"data.paths: {corpus.train_tokens} tokens are left to train on and one sample of "
            f"batch.sequence={sequence} takes {sequence + 1}; add data or lower batch.sequence"
        )


def _build(
    source: Source, held_out: float, storage: Location, target: Location, sequence: int
) -> _Index:
    """Pack a corpus where nobody looks, then move it into place.

    On a local disk that place is a hidden sibling and the move a rename. An object store cannot
    rename, so shards go to a directory of their own below the target, and `corpus.json` names them.
    """
    surveyed = survey(source)
    division = divide(surveyed, held_out)
    nonce = uuid.uuid4().hex[:8]
    cache = storage / CACHE
    if target.is_local:
        _remove_abandoned(cache)
        build, directory, prefix = (cache / f".{target.name}.{nonce}",) * 2 + ("",)
    else:
        build, directory, prefix = target / nonce, target, f"{nonce}/"
    with _nothing_left(build, (storage, cache)):
        make_directory(build)
        train, val = pack(source, surveyed, division, directory, prefix=prefix, layout=LAYOUT)
        index = _Index(
            corpus=_describe(source, target, train, val),
            layout=LAYOUT,
            shards={"train": train.shards, "val": val.shards},
        )
        _require_sample(index.corpus, sequence)
        if target.is_local:
            return _settle(index, build, target, cache)
        return _settle_remotely(index, build, target)


def _describe(source: Source, target: Location, train: Side, val: Side) -> Corpus:
    content = f"{source.vocab} {train.tokens} {train.digest} {val.tokens} {val.digest}"
    return Corpus(
        uri=target.uri,
        vocab=source.vocab,
        digest=hashlib.sha256(content.encode()).hexdigest(),
        train_tokens=train.tokens,
        val_tokens=val.tokens,
        train_documents=train.documents,
        val_documents=val.documents,
        byte_level=source.byte_level,
    )


def _settle(index: _Index, build: Location, target: Location, cache: Location) -> _Index:
    """Rename a finished directory into place, unless another process has been first."""
    for shard in (shard for side in index.shards.values() for shard in side):
        with (
            explained(build / shard.name, "write"),
            Path(build.path, shard.name).open("rb") as file,
        ):
            os.fsync(file.fileno())
    publish(build / INDEX, _to_json(index))
    while True:
        try:
            Path(build.path).rename(target.path)
        except OSError as error:
            winner = _intact(target)
            if winner is not None:
                remove(build)
                return winner
            if not exists(target):
                raise StorageError(f"cannot write {target}: {error.strerror}") from error
            logger.warning("%s is damaged and gets replaced", target)
            aside = cache / f"{build.name}.damaged"
            with contextlib.suppress(FileNotFoundError):
                Path(target.path).rename(aside.path)
            remove(aside)
        else:
            return index


def _settle_remotely(index: _Index, build: Location, target: Location) -> _Index:
    """Publish the index that names a finished directory, unless another has been first."""
    winner = _intact(target)
    if winner is not None:
        remove(build)
        return winner
    publish(target / INDEX, _to_json(index))
    return index


@contextlib.contextmanager
def _nothing_left(build: Location, parents: tuple[Location, ...]) -> Iterator[None]:
    """Remove what was built, and the directories made for it, if an error passes by."""
    made = [parent for parent in parents if build.is_local and not exists(parent)]
    try:
        yield
    except BaseException:
        remove(build)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                Path(parent.path).rmdir()
        raise


def _remove_abandoned(cache: Location) -> None:
    """Remove what drivers that were killed a day ago or earlier had been building."""
    before = time.time_ns() - ABANDONED_S * 10**9
    for entry in children(cache):
        if entry.is_directory and entry.location.name.startswith("."):
            with contextlib.suppress(StorageError):
                if entry.modified_ns < before:
                    remove(entry.location)


def _intact(target: Location) -> _Index | None:
    """The index of a packed corpus all of whose shards are there at their full size."""
    index = _read_index(target)
    if index is None:
        return None
    shards = [shard for side in index.shards.values() for shard in side]
    with explained(target, "look at"):
        infos = cast(
            "list[pafs.FileInfo]",
            target.filesystem.get_file_info([(target / shard.name).path for shard in shards]),
        )
    whole = all(info.size == shard.size for info, shard in zip(infos, shards, strict=True))
    return index if whole else None


def _to_json(index: _Index) -> bytes:
    plain = {"schema": SCHEMA, **asdict(index)}
    del plain["corpus"]["uri"]  # the directory may be moved
    return json.dumps(plain, indent=1).encode()


def _read_index(target: Location) -> _Index | None:
    """What `corpus.json` says; None if it is not there or not whole."""
    if not exists(target / INDEX):
        return None
    try:
        plain = json.loads(read_bytes(target / INDEX))
        return _Index(
            corpus=Corpus(uri=target.uri, **plain["corpus"]),
            layout=Layout(**plain["layout"]),
            shards={
                split: [Shard(**shard) for shard in plain["shards"][split]]
                for split in ("train", "val")
            },
        )
    except (ValueError, KeyError, TypeError):
        return None
