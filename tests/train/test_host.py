"""Memory that is freed stays with a process that is told to keep it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tidemill.train.host import ALLOCATOR

SIZE = 64 * 2**20
PROGRAM = f"""
import psutil
held = [bytearray({SIZE // 8}) for _ in range(8)]
held.clear()
print(psutil.Process().memory_info().rss)
"""


def _left(**environment: str) -> int:
    """Bytes that a process has after it allocated and freed `SIZE` of them."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return int(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other keys")
def test_what_was_freed_is_kept() -> None:
    assert _left(**ALLOCATOR) - _left() > SIZE // 2
