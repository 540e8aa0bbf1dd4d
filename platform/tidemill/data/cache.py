"""The cache of packed corpora: build where nobody looks, then move into place.

A directory counts once it has its `corpus.json`, which is written last, and for as long as every
shard that it lists has its full size. On a local disk a hidden sibling is built and renamed; an
object store cannot rename, so there shards go to a directory of their own, which `corpus.json`
names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tidemill.data.shards import Layout, Shard
from tidemill.errors import StorageError
from tidemill.storage import (
    Location,
    children,
    exists,
    explained,
    make_directory,
    patiently,
    publish,
    read_bytes,
    remove,
    sync,
)

if TYPE_CHECKING:
    from pyarrow import fs as pafs

INDEX = "corpus.json"
SCHEMA = 1
CACHE = "cache"
ABANDONED_S = 24 * 3600

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What `corpus.json` says.

    Attributes:
        facts: About the corpus, as JSON scalars.
        layout: How its tokens are cut.
        shards: The files of each split, in order.
    """

    facts: dict[str, Any]
    layout: Layout
    shards: dict[str, list[Shard]]

    def files(self) -> list[Shard]:
        """The files of all splits."""
        return [shard for side in self.shards.values() for shard in side]


def place(storage: Location, fingerprint: str) -> Location:
    """Where the corpus with this fingerprint is kept, if it is."""
    return storage / CACHE / fingerprint


def read_index(directory: Location) -> Index | None:
    """What a directory's `corpus.json` says; None if it is missing, torn or of another schema."""
    if not exists(directory / INDEX):
        return None
    try:
        plain = json.loads(read_bytes(directory / INDEX))
        if plain["schema"] != SCHEMA:
            return None
        return Index(
            facts=dict(plain["facts"]),
            layout=Layout(**plain["layout"]),
            shards={
                split: [Shard(**shard) for shard in shards]
                for split, shards in plain["shards"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def find(directory: Location) -> Index | None:
    """The index of a packed corpus, if all its shards are there at their full size."""
    index = read_index(directory)
    if index is None:
        return None
    shards = index.files()
    with explained(directory, "look at"):
        infos = cast(
            "list[pafs.FileInfo]",
            patiently(
                lambda: directory.filesystem.get_file_info(
                    [(directory / shard.name).path for shard in shards]
                )
            ),
        )
    whole = all(info.size == shard.size for info, shard in zip(infos, shards, strict=True))
    return index if whole else None


def build(storage: Location, directory: Location, fill: Callable[[Location, str], Index]) -> Index:
    """Build a packed corpus, or take the one that another process has finished meanwhile.

    Args:
        storage: The run's storage; made if need be.
        directory: Where the corpus is to be, below `storage`.
        fill: Writes the shards into the directory it is given, under names that begin with the
            prefix it is given.

    Raises:
        StorageError: It cannot be written. Whatever is raised, nothing is left.
    """
    nonce = uuid.uuid4().hex[:8]
    cache = storage / CACHE
    if directory.is_local:
        _remove_abandoned(cache)
        hidden = cache / f".{directory.name}.{nonce}"
        with _nothing_left(hidden, (storage, cache)):
            make_directory(hidden)
            index = fill(hidden, "")
            return _settle(index, hidden, directory)
    own = directory / nonce
    with _nothing_left(own, ()):
        index = fill(directory, f"{nonce}/")
        winner = find(directory)
        if winner is not None:
            remove(own)
            return winner
        publish(directory / INDEX, _to_json(index))
        return index


def _settle(index: Index, hidden: Location, directory: Location) -> Index:
    """Rename a finished directory into place, unless another process has been first."""
    for shard in index.files():
        sync(hidden / shard.name)
    publish(hidden / INDEX, _to_json(index))
    while True:
        try:
            Path(hidden.path).rename(directory.path)
        except OSError as error:
            winner = find(directory)
            if winner is not None:
                remove(hidden)
                return winner
            if not exists(directory):
                raise StorageError(f"cannot write {directory}: {error.strerror}") from error
            logger.warning("%s is damaged and is built again", directory)
            _put_aside(directory, f"{hidden.path}.damaged")
        else:
            return index


def _put_aside(directory: Location, aside: str) -> None:
    """Remove a damaged directory at once for newcomers; who has it open keeps what is there."""
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        Path(directory.path).rename(aside)
        shutil.rmtree(aside)


@contextlib.contextmanager
def _nothing_left(built: Location, parents: tuple[Location, ...]) -> Iterator[None]:
    """Remove what was built, and the directories made for it, if an error passes by."""
    made = [parent for parent in parents if not exists(parent)]
    try:
        yield
    except BaseException:
        remove(built)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                Path(parent.path).rmdir()
        raise


def _remove_abandoned(cache: Location) -> None:
    """Remove what drivers that were killed a day ago or earlier had been building."""
    before = time.time_ns() - ABANDONED_S * 10**9
    for entry in children(cache):
        hidden = entry.is_directory and entry.location.name.startswith(".")
        if hidden and entry.modified_ns < before:
            with contextlib.suppress(StorageError):  # another driver was quicker
                remove(entry.location)


def _to_json(index: Index) -> bytes:
    return json.dumps({"schema": SCHEMA, **asdict(index)}, indent=1).encode()
