"""A disk of its own for a test: small enough to fill, and read-only on demand.

It is a tmpfs in a mount namespace of its own, held by a shell and seen through /proc, so that
neither root nor a tidy end is needed: when the shell goes, so does the disk, whatever was on it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMESPACES = (["unshare", "-m"], ["unshare", "-Urm"])  # as root, or as whoever we are


@dataclass(frozen=True)
class Disk:
    """A mounted disk.

    Attributes:
        path: Its root, for this process and those it starts.
        shell: Holds it.
    """

    path: Path
    shell: subprocess.Popen[bytes]

    def fill(self, leave: int = 0) -> None:
        """Write `.filler` until `leave` bytes are free."""
        with contextlib.suppress(OSError), (self.path / ".filler").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        if leave:
            with (self.path / ".filler").open("r+b") as file:
                file.truncate(file.seek(0, 2) - leave)

    def free(self) -> None:
        """Remove the filler."""
        (self.path / ".filler").unlink()

    def make_read_only(self) -> None:
        """Let every write fail, also of root."""
        if not _run(self.shell, f"mount -o remount,ro {_target(self.path)}"):
            pytest.skip("a disk cannot be remounted here")


@contextlib.contextmanager
def small_disk(at: Path, size: int) -> Iterator[Disk]:
    """Mount an empty disk of `size` bytes, or skip the test where nobody may mount.

    Args:
        at: An empty directory, e.g. `tmp_path`; it stays empty for everybody else.
        size: Rounded up to whole pages of 4096 bytes.
    """
    for namespace in NAMESPACES if shutil.which("unshare") else ():
        with subprocess.Popen(
            [*namespace, "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        ) as shell:
            try:
                if _run(shell, f"mount -t tmpfs -o size={size} tmpfs '{at}'"):
                    yield Disk(Path(f"/proc/{shell.pid}/root{at}"), shell)
                    return
            finally:
                shell.kill()
    pytest.skip("neither root nor a user namespace may mount a disk here")


def _target(path: Path) -> str:
    """The path as the shell knows it."""
    return "'/" + "/".join(path.parts[4:]) + "'"


def _run(shell: subprocess.Popen[bytes], command: str) -> bool:
    """Whether the shell could do it."""
    if shell.stdin is None or shell.stdout is None:
        raise TypeError("the shell needs pipes")
    try:
        shell.stdin.write(f"{command} && echo yes || echo no\n".encode())
    except BrokenPipeError:
        return False  # there is no such namespace here
    return shell.stdout.readline() == b"yes\n"
