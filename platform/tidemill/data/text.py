"""UTF-8 text as bytes: a token is a byte, and 256 ends a document.

One file is one document. It is checked and hashed in one pass and handed out in a second, so a file
of any size takes a fixed amount of memory and a bad byte is found before anything is written.
"""

from __future__ import annotations

import codecs
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tidemill.data.sources import SourceFile, find_files, open_source
from tidemill.errors import DataError
from tidemill.spec.training import TextSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

END_OF_DOCUMENT = 256
VOCAB = 257
CHUNK_BYTES = 4 * 2**20
# Tests hold files that are broken on purpose, and the rest differs between two installations of
# one version of Python: equal interpreters are to give equal corpora.
LIBRARY_EXCLUDE = (
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"),
    *("_sysconfigdata*", "config-*", "sitecustomize.py", "usercustomize.py"),
)


@dataclass(frozen=True, slots=True)
class TextDocument:
    """One file, checked.

    Attributes:
        file: Where its bytes are.
        hash: sha256 of its bytes.
        tokens: Its bytes and the end-of-document token.
    """

    file: SourceFile
    hash: bytes
    tokens: int

    def pieces(self) -> Iterator[NDArray[np.unsignedinteger]]:
        """Its tokens in order, as uint16."""
        for chunk in _chunks(self.file):
            yield np.frombuffer(chunk, np.uint8).astype(np.uint16)
        yield np.array([END_OF_DOCUMENT], np.uint16)


@dataclass(frozen=True, slots=True)
class TextSource:
    """The documents of a `TextSpec`; build with `open_text`."""

    files: Sequence[SourceFile]
    vocab: int = VOCAB
    byte_level: bool = True

    def documents(self, file: SourceFile) -> Iterator[TextDocument]:
        """The document in a file; none if it is empty.

        Raises:
            DataError: The file is not UTF-8 or cannot be read.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        digest = hashlib.sha256()
        size = 0
        held = 0
        try:
            for chunk in _chunks(file):
                digest.update(chunk)
                decoder.decode(chunk)
                size += len(chunk)
                held = len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(
                f"data.paths: {file.location} is not UTF-8 (byte {size - held + error.start}: "
                f"{error.reason}); convert it or add it to data.exclude"
            ) from error
        if size:
            yield TextDocument(file, digest.digest(), size + 1)


def open_text(spec: TextSpec) -> TextSource:
    """Find the files of a `TextSpec`.

    Raises:
        DataError: A path is missing, a glob matches nothing, or nothing is left.
        StorageError: A filesystem cannot be reached.
    """
    if spec.paths:
        return TextSource(find_files(spec.paths, spec.exclude))
    library = sysconfig.get_path("stdlib")
    return TextSource(find_files([library], [*LIBRARY_EXCLUDE, *spec.exclude], walked="*.py"))


def _chunks(file: SourceFile) -> Iterator[bytes]:
    with open_source(file) as reader:
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
