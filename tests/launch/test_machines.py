"""Machines come and go as real ones do, are written down, and leave nothing behind."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import ray

from tidemill.launch.machines import local_machines

if TYPE_CHECKING:
    import pytest

PATIENCE_S = 60.0


def wait_until(true: Callable[[], object]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until_s
        time.sleep(0.05)


class Worker:
    """Holds a machine, as a worker of a run does."""

    def pid(self) -> int:
        return os.getpid()


def test_a_machine_is_there_until_it_is_given_back_or_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    before = set(psutil.Process().children(recursive=True))
    with local_machines() as machines:
        machines.add("idle")
        machines.add("busy")
        ray.init(address=machines.address, log_to_driver=False)
        try:
            held: Any = ray.remote(num_cpus=1)(Worker)
            workers = {
                name: held.options(label_selector={"ray.io/node-id": key}).remote()
                for name, key in machines.ids.items()
            }
            busy = psutil.Process(ray.get(workers["busy"].pid.remote()))
            ray.get(workers["idle"].pid.remote())
            machines.drain("idle", 300.0)
            machines.drain("busy", 0.5)
            machines.look()
            assert "idle" in machines.ids  # somebody uses it
            ray.kill(workers["idle"])
            wait_until(lambda: machines.look() or not machines.ids)
            assert not busy.is_running()
        finally:
            ray.shutdown()
        stays = {stay.node: stay for stay in machines.stays}
    assert stays.keys() == {"idle", "busy"}
    assert all(0 < stay.from_s < stay.until_s < math.inf for stay in stays.values())
    assert 0 < stays["idle"].notice_s < 300.0  # given back before it is taken
    assert stays["busy"].notice_s >= 0.5
    assert os.environ["RAY_TMPDIR"] == "/nowhere"
    assert set(psutil.Process().children(recursive=True)) <= before
