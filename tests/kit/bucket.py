"""An S3 bucket on loopback, for tests of what happens on object storage.

It is moto's server in a thread; where moto is not installed, `HAVE_BUCKET` is false and the tests
that want a bucket do not exist.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import urllib.request
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterator

HAVE_BUCKET = importlib.util.find_spec("moto") is not None


@contextlib.contextmanager
def serve_bucket(name: str) -> Iterator[str]:
    """Serve one empty bucket, with credentials for it in the environment of this process.

    Yields:
        The host and port of its endpoint.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        request = urllib.request.Request(f"http://{host}:{port}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310 - our own server
        keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
        with mock.patch.dict(os.environ, keys):
            yield f"{host}:{port}"
    finally:
        server.stop()
