"""One bucket for all tests of storage; each finds it whole, and keeps to a prefix of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.bucket import HAVE_BUCKET, Bucket, serve_flaky_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

collect_ignore = [] if HAVE_BUCKET else ["test_bucket.py"]


@pytest.fixture(scope="package")
def served() -> Iterator[Bucket]:
    with serve_flaky_bucket("tide", rate=0) as bucket:
        yield bucket


@pytest.fixture
def bucket(served: Bucket) -> Iterator[Bucket]:
    served.heal()
    yield served
    served.heal()
