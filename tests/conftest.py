"""What every test stands on: no network but this machine, no leftovers, no luck.

With `-n 2` the tests of a whole cluster go one after the other in one process, since two of them
would starve each other, while the other process has all the rest.

A test that reaches outside meets the error of a machine without a network, so that it fails on
every machine alike. Everything a session starts inherits a mark in its environment, which finds
what it left running even after its parent died.
"""

from __future__ import annotations

import errno
import gc
import ipaddress
import os
import shutil
import socket
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
MARK = "TIDEMILL_TEST_SESSION"
PATIENCE_S = 20.0  # for processes that were asked to stop and are still about it
SYSTEM = "tests/system/"
RUN_OUTPUTS = ("runs", "outputs", "multirun")  # where doors write unless told otherwise

# Before anything imports Ray, which reads its environment once. Ray's own directory is short
# because its socket paths must fit in 107 bytes, and apart because `ray.init()` would otherwise
# join whatever cluster another session has left in /tmp/ray.
os.environ |= {
    MARK: uuid.uuid4().hex,
    "AWS_EC2_METADATA_DISABLED": "true",
    "GPUHUNT_CATALOG_URL": "http://127.0.0.1:9",  # where nobody answers
    "OMP_NUM_THREADS": "1",  # tests compute little, and threads would wait more than they help
    "RAY_AUTH_MODE": "disabled",
    "RAY_TMPDIR": tempfile.mkdtemp(prefix="mill-", dir="/tmp"),
    "RAY_USAGE_STATS_ENABLED": "0",
}

os.environ.pop("COLUMNS", None)  # the width of whatever terminal the tests were started in

# The same examples every time and no deadline: a slow machine is not a failed test.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("house")


class Fence:
    """Refuses every connection that would leave this machine, unless `open`."""

    def __init__(self) -> None:
        self.open = False
        self.names = {None, "", "localhost", socket.gethostname(), socket.getfqdn()}
        self.addresses = {
            address.address.partition("%")[0]
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
        }

    def is_inside(self, host: object) -> bool:
        """Whether `host` is a name or an address of this machine."""
        name = host.decode() if isinstance(host, bytes) else host
        if self.open or name in self.names or name in self.addresses:
            return True
        try:
            address = ipaddress.ip_address(str(name).partition("%")[0])
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified

    def guard_connect(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `socket.connect` or `socket.connect_ex`."""

        def guarded(sock: socket.socket, address: Any) -> Any:
            if sock.family in {socket.AF_INET, socket.AF_INET6} and not self.is_inside(address[0]):
                message = f"tests stay on this machine; {address} is outside"
                raise OSError(errno.ENETUNREACH, message)
            return connect(sock, address)

        return guarded

    def guard_lookup(self, lookup: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `socket.getaddrinfo` or one of its elders."""

        def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
            # A literal address is no question to anybody; connecting to it is refused above.
            if not self.is_inside(host) and not _is_address(host):
                message = f"tests stay on this machine; {host} is outside"
                raise socket.gaierror(socket.EAI_NONAME, message)
            return lookup(host, *args, **kwargs)

        return guarded


def _is_address(host: Any) -> bool:
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return True


FENCE = Fence()


@pytest.fixture(scope="session", autouse=True)
def _fenced() -> Iterator[None]:
    """Keep every connection of this process on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, FENCE.guard_connect(getattr(socket.socket, name)))
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            patch.setattr(socket, name, FENCE.guard_lookup(getattr(socket, name)))
        yield


class SystemTestsInARow(LoadFileScheduling):
    """Hands out test files, those of a whole cluster together and first."""

    def _split_scope(self, nodeid: str) -> str:
        return SYSTEM if nodeid.startswith(SYSTEM) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SystemTestsInARow:
    """Keep the order of the collection below, instead of that of the files' sizes."""
    config.option.loadscopereorder = False
    return SystemTestsInARow(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, where something else can run beside it."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(SYSTEM))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported by now: libraries, some a million objects."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Open the fence for tests that are marked as live, and for no others."""
    FENCE.open = item.get_closest_marker("live") is not None


def pytest_unconfigure() -> None:
    """Remove Ray's directory, also where nothing was run."""
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers(_fenced: None) -> Iterator[None]:
    """Fail the session if something it started is still there at its end, and remove that."""
    before = {name for name in RUN_OUTPUTS if (ROOT / name).exists()}
    yield
    gc.collect()
    psutil.wait_procs(_started_here(), timeout=PATIENCE_S)
    left = _started_here()
    told = [_describe(process) for process in left]
    for process in left:
        _kill(process)
    outputs = [name for name in RUN_OUTPUTS if name not in before and (ROOT / name).exists()]
    if told or outputs:
        pytest.fail("the tests left behind: " + ", ".join(told + outputs), pytrace=False)


def _started_here() -> list[psutil.Process]:
    """Every live process that carries this session's mark, but this one and its servants."""
    mark = os.environ[MARK]
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(MARK) == mark
                and not _is_servant(process)
            ):
                found.append(process)
        except psutil.Error:
            continue  # gone, or another user's
    return found


def _is_servant(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's own helper, which ends with this process.

    What the fork server forks has the same command line, but another parent.
    """
    command = " ".join(process.cmdline())
    return process.ppid() == os.getpid() and (
        "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command
    )


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    except psutil.Error:
        return f"process {process.pid}"


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
