"""URI to filesystem, and the handful of verbs the rest of Tidemill needs of one.

Nothing is ever visible half-written: `publish` and `open_output` write beside their target and move
it into place, or leave it to an object store, which shows an object when it is complete. What broke
for a moment is tried again here; what stays broken is a `StorageError` within bounded time (see
`location` for the figures), and whoever has more patience tries again with the whole.
"""

from __future__ import annotations

from tidemill.storage.faults import explained, patiently
from tidemill.storage.location import Location, locate
from tidemill.storage.streams import open_input, open_output
from tidemill.storage.verbs import (
    Entry,
    check_writable,
    children,
    exists,
    make_directory,
    publish,
    read_bytes,
    remove,
    sweep_hidden,
    sync,
)

__all__ = [
    "Entry",
    "Location",
    "check_writable",
    "children",
    "exists",
    "explained",
    "locate",
    "make_directory",
    "open_input",
    "open_output",
    "patiently",
    "publish",
    "read_bytes",
    "remove",
    "sweep_hidden",
    "sync",
]
