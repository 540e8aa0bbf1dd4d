"""Places in filesystems, and how a URI becomes one.

How long an unreachable bucket can hold a verb up: each request has `CONNECT_S` to connect and may
be silent for `SILENCE_S`, and is repeated `RETRIES` times with waits that double, 26 seconds in
sum. As measured: a closed port is an error after 26 seconds, a host that does not answer after 81,
a server that accepts and says nothing after 136 (213 for what is written), and one that throttles
for ever after 78 (see `faults`). Google's client is held to `GOOGLE_S`.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
from pyarrow import fs as pafs

from tidemill.errors import StorageError
from tidemill.storage.faults import reason

SCHEMES = ("file", "s3", "gs")
GOOGLE_S = 60
"""Seconds that Google's client keeps trying; its own default is 15 minutes."""
RETRIES = 10
"""Repeats of one request to S3: enough that one in 2000 fails where half of all tries do."""
CONNECT_S = 5.0
SILENCE_S = 10.0

_VIRTUAL = "force_virtual_addressing"
_LOST_IN_REBUILDING = {"smart_defaults", "tls_ca_dir_path", "tls_verify_certificates"}


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a filesystem. Build with `locate`, descend with `/`.

    Attributes:
        uri: What to pass to `locate` in another process to get the same place.
        filesystem: The pyarrow filesystem; holds credentials, so never pickle or print it.
        path: The path within it.
    """

    uri: str
    filesystem: pafs.FileSystem
    path: str

    def __truediv__(self, name: str) -> Location:
        """The place called `name` below this one; `name` may contain slashes."""
        place, mark, options = self._parts()
        uri = f"{place.rstrip('/')}/{name}{mark}{options}"
        return Location(uri, self.filesystem, posixpath.join(self.path, name))

    def __str__(self) -> str:
        """The URI without its options, for people."""
        return self._parts()[0]

    def __repr__(self) -> str:
        """The URI alone: a filesystem may hold credentials."""
        return f"Location({str(self)!r})"

    @property
    def is_local(self) -> bool:
        """Whether this is a local path, which has rename and no atomic put."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Location:
        """The place that contains this one; the root contains itself."""
        place, mark, options = self._parts()
        return Location(
            posixpath.dirname(place) + mark + options, self.filesystem, posixpath.dirname(self.path)
        )

    def _parts(self) -> tuple[str, str, str]:
        """The URI before its options, and they with their mark; a local path has none."""
        return (self.uri, "", "") if self.is_local else self.uri.partition("?")


def locate(uri: str) -> Location:
    """Resolve a URI or a local path (relative ones against the working directory).

    Credentials come from the environment (`AWS_ACCESS_KEY_ID`, an instance's role,
    `GOOGLE_APPLICATION_CREDENTIALS`, ...), an S3-compatible service from `AWS_ENDPOINT_URL` or from
    the URI, e.g. `s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http`. Without either
    and without `region=`, Amazon is asked for the bucket's region.

    Raises:
        StorageError: The scheme is unknown, the URI holds a secret, or there is no such service.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        path = str(Path(uri).expanduser().absolute())
        return Location(path, pafs.LocalFileSystem(), path)
    if scheme not in SCHEMES:
        raise StorageError(f"{uri}: unknown scheme {scheme}://; use a path, s3:// or gs://")
    authority, (_, _, options) = rest.partition("/")[0], uri.partition("?")
    if (":" in authority and "@" in authority) or "secret" in options:
        raise StorageError(
            f"{scheme}://...: a URI is shown and stored, so it must not hold credentials; set them "
            "in the environment"
        )
    if scheme == "gs" and "retry_limit_seconds" not in options:
        uri = f"{uri}{'&' if options else '?'}retry_limit_seconds={GOOGLE_S}"
    try:
        filesystem, path = _s3(uri) if scheme == "s3" else pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"{uri.partition('?')[0]}: {reason(error)}; check the URI") from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Location(path, filesystem, path)
    return Location(uri.rstrip("/"), filesystem, path)


def _s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that pyarrow makes of a URI, rebuilt with what a URI cannot say.

    pyarrow's strategy for URIs gives up after 6 seconds and has no backoff. Its standard one never
    gets back what it spends from its quota, and stops trying again after 100 repeats in the life of
    a process; its default one has neither fault. A small object is put in one request: there
    is no upload to complete, and nothing is left behind where that fails.
    """
    place, _, query = uri.partition("?")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    virtual = asked.pop(_VIRTUAL, "false")
    if virtual not in {"true", "false"}:
        raise ValueError(f"{_VIRTUAL} must be true or false, not {virtual}")
    words = [word for word in query.split("&") if not word.startswith(f"{_VIRTUAL}=")]
    filesystem, path = pafs.FileSystem.from_uri(f"{place}?{'&'.join(words)}" if words else place)
    if _LOST_IN_REBUILDING & asked.keys():
        return filesystem, path
    build, (options,) = filesystem.__reduce__()
    ours: dict[str, Any] = {
        "retry_strategy": pafs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES),
        "connect_timeout": CONNECT_S,
        "request_timeout": SILENCE_S,
        "allow_delayed_open": asked.get("allow_delayed_open", "true") == "true",
        _VIRTUAL: virtual == "true",
    }
    return build(options | ours), path
