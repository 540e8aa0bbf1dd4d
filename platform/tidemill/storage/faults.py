"""What went wrong, in words for people, and whether it is worth another try.

pyarrow tells a bucket's error in the text of an `OSError` and nowhere else, so the forms it takes
are written down here, and shown one by one in the tests.
"""

from __future__ import annotations

import contextlib
import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from tidemill.errors import StorageError

if TYPE_CHECKING:
    from tidemill.storage.location import Location

T = TypeVar("T")

PATIENCE_S = 60.0
"""For how long a fault that passes is met with another try."""
LONGEST_PAUSE_S = 5.0

_CAUSES = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the filesystem is read-only",
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk failed",
    errno.ESTALE: "the network filesystem has lost the file",
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a file is in the way of a directory",
    errno.EEXIST: "a file is in the way of a directory",
    errno.EISDIR: "a directory is in the way of a file",
}
_BUCKET_CAUSES = (
    (r"NO_SUCH_BUCKET|Bucket '[^']*' not found|bucket does not exist", "there is no such bucket"),
    (r"NO_SUCH_UPLOAD", "the upload was aborted by the service, or by a rule of the bucket"),
    (r"XMinioStorageFull|HTTP status 507", "no space is left behind the bucket"),
    (r"QuotaExceeded|RESOURCE_EXHAUSTED", "the bucket's quota is used up"),
    (r"ExpiredToken|REQUEST_EXPIRED", "the credentials have expired"),
    (
        r"ACCESS_KEY_ID|SIGNATURE_DOES_NOT|CLIENT_TOKEN|InvalidToken|UNAUTHENTICATED",
        "the credentials are refused",
    ),
    (r"TIME_TOO_SKEWED", "this machine's clock is wrong"),
    (
        r"ACCESS_DENIED|PERMISSION_DENIED",
        "access denied; check the credentials in the environment and the bucket's policy",
    ),
    (
        r"HTTP status 30[17]|AuthorizationHeaderMalformed",
        "the bucket is in another region; name it with ?region= in the URI",
    ),
    (
        r"HTTP status 400\).*No response body",
        "the request is refused; have the credentials expired, or is ?region= in the URI wrong?",
    ),
    (r"SLOW_DOWN|THROTTLING", "the service throttles requests"),
    (r"INTERNAL_FAILURE|SERVICE_UNAVAILABLE|HTTP status 50\d", "the service fails"),
    (r"curlCode: 6\b", "no connection: no such host; check the network and the endpoint"),
    (r"curlCode: 28\b", "no connection: no answer in time; check the network and the endpoint"),
    (r"NETWORK_CONNECTION|UNAVAILABLE", "no connection; check the network and the endpoint"),
)
_PASSING = re.compile(
    r"SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT"
    r"|HTTP status 50[0234]|curlCode: (18|52|55|56)\b|errors when deleting objects"
)


@contextlib.contextmanager
def explained(location: Location, verb: str) -> Iterator[None]:
    """Turn the operating system's or the bucket's error into one that names place and verb."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot {verb} {location}: {reason(error)}") from error


def patiently(call: Callable[[], T]) -> T:
    """Call what may be repeated, again after faults that pass, for `PATIENCE_S`.

    The clients repeat requests themselves. This is for what they take for final, such as the answer
    to a read of fewer bytes than an error has, and for long throttling: ranks that were throttled
    together must not come back together. That nobody answers is told at once.
    """
    end_s, pause_s = time.monotonic() + PATIENCE_S, 0.1
    while True:
        try:
            return call()
        except OSError as error:
            if time.monotonic() > end_s or not _PASSING.search(_told(error)):
                raise
        time.sleep(random.uniform(0, pause_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def reason(error: BaseException) -> str:
    """One line for people; a known cause in plain words, anything else in its own."""
    number = getattr(error, "errno", None)
    if number in _CAUSES:
        return _CAUSES[number]
    text = " ".join(str(error).split()) or type(error).__name__
    told = _told(error)
    return next((cause for form, cause in _BUCKET_CAUSES if re.search(form, told)), text)


def _told(error: BaseException) -> str:
    """What the service said: the text before it names keys, which may say anything."""
    return " ".join(str(error).split()).rpartition("AWS Error ")[2]
