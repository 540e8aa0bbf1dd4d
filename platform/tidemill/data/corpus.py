"""A corpus: documents packed once, by the driver, into a directory that every rank then reads.

Files are packed in the order of their content's hash, so names and paths play no part: the same
documents give the same tokens and the same digest on every machine.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass

from tidemill.data import cache
from tidemill.data.packing import divide, pack, survey
from tidemill.data.shards import Layout, PackedTokens
from tidemill.data.sources import Source
from tidemill.data.stream import Split, Stream, SyntheticStream, TokenStream, count_windows
from tidemill.data.text import open_text
from tidemill.data.tokens import open_tokens
from tidemill.errors import DataError
from tidemill.spec.base import Plain, digest_of, to_plain
from tidemill.spec.training import DataSpec, SyntheticSpec, TextSpec, TokensSpec
from tidemill.storage import Location, locate

LAYOUT = Layout()

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
    place = cache.place(storage, _fingerprint(spec, source))
    index = cache.find(place)
    if index is None:
        logger.info("packing %d files into %s", len(source.files), place)
        index = _pack(source, held_out, storage, place, sequence)
    corpus = _corpus(place, index)
    _require_sample(corpus, sequence)
    return corpus


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
    place = locate(corpus.uri)
    index = cache.read_index(place)
    if index is None or _corpus(place, index) != corpus:
        raise DataError(
            f"the packed corpus {corpus.uri} is gone or damaged; start again to have it rebuilt"
        )
    tokens = PackedTokens(corpus.uri, index.shards[split], index.layout)
    return TokenStream(tokens, seed=seed, sequence=sequence, split=split)


def samples_per_epoch(corpus: Corpus, sequence: int) -> int:
    """Samples of the training side, which need not be there.

    Args:
        corpus: As a run has it.
        sequence: Tokens per sample.
    """
    return count_windows(corpus.train_tokens, sequence) if corpus.uri else corpus.train_documents


def _synthetic(spec: SyntheticSpec) -> Corpus:
    """The corpus of made-up samples, which is nowhere; validation has a tenth as many."""
    return Corpus(
        uri="",
        vocab=spec.vocab,
        digest=digest_of(_plain_without(spec, spec.WHERE)),
        train_tokens=0,
        val_tokens=0,
        train_documents=spec.samples,
        val_documents=max(1, spec.samples // 10),
        byte_level=False,
    )


def _fingerprint(spec: DataSpec, source: Source) -> str:
    """Name of the cached corpus: the files as they are now, and what is made of them."""
    plain = _plain_without(spec, {"tier", "paths", "exclude"})
    files = [[file.location.uri, file.size, file.modified_ns] for file in source.files]
    return digest_of({"schema": cache.SCHEMA, "spec": plain, "files": files})[:32]


def _plain_without(spec: DataSpec, keys: Collection[str]) -> Plain:
    return {key: value for key, value in to_plain(spec).items() if key not in keys}


def _require_sample(corpus: Corpus, sequence: int) -> None:
    """Raise `DataError` unless there is a whole sample to train on."""
    if corpus.train_tokens < sequence + 1:
        raise DataError(
            f"data.paths: {corpus.train_tokens} tokens are left to train on and one sample of "
            f"batch.sequence={sequence} takes {sequence + 1}; add data or lower batch.sequence"
        )


def _pack(
    source: Source, held_out: float, storage: Location, place: Location, sequence: int
) -> cache.Index:
    """Pack a corpus into its place in the cache."""
    surveyed = survey(source)
    division = divide(surveyed, held_out)

    def fill(directory: Location, prefix: str) -> cache.Index:
        train, val = pack(source, surveyed, division, directory, prefix=prefix, layout=LAYOUT)
        content = f"{source.vocab} {train.tokens} {train.digest} {val.tokens} {val.digest}"
        corpus = Corpus(
            uri=place.uri,
            vocab=source.vocab,
            digest=hashlib.sha256(content.encode()).hexdigest(),
            train_tokens=train.tokens,
            val_tokens=val.tokens,
            train_documents=train.documents,
            val_documents=val.documents,
            byte_level=source.byte_level,
        )
        _require_sample(corpus, sequence)
        facts = asdict(corpus)
        del facts["uri"]  # the storage may be moved
        return cache.Index(
            facts=facts, layout=LAYOUT, shards={"train": train.shards, "val": val.shards}
        )

    return cache.build(storage, place, fill)


def _corpus(place: Location, index: cache.Index) -> Corpus:
    return Corpus(uri=place.uri, **index.facts)
