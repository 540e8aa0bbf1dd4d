"""Probe: how fast this rank computes and gets its data, measured apart from all other ranks.

A step takes as long as its slowest rank on every rank, so step times do not tell who that is. A
small multiplication that needs nobody else does. It is repeated only so often that it costs a
thousandth of the time.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

import torch

from tidemill.train.pulse import Pulse, Reading

SHARE = 0.001
"""Part of the time that measuring may take."""
WINDOW = 9
"""Measurements that a reading is taken from."""


class Probe:
    """Measures one rank, in the thread that trains.

    Args:
        device: Torch device string.
        pulse: Where readings are shown.
        share: Part of the time that it may take.
    """

    def __init__(self, device: str, pulse: Pulse, share: float = SHARE) -> None:
        self._work = CudaWork(device) if device.startswith("cuda") else CpuWork()
        self._pulse = pulse
        self._share = share
        self._computed: deque[float] = deque(maxlen=WINDOW)
        self._waited: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._wait_s, self._steps = 0.0, 0
        self._number = 0
        self._due_s = time.perf_counter()

    def note(self, wait_s: float) -> None:
        """Take in that a step has waited so long for its samples; measure when it is time to."""
        self._wait_s += wait_s
        self._steps += 1
        began_s = time.perf_counter()
        if began_s < self._due_s:
            return
        took_s = self._work.do()
        now_s = time.perf_counter()
        cost_s = max(now_s - began_s, took_s or 0.0)  # a GPU works on after it was asked to
        self._due_s = now_s + cost_s / self._share
        if took_s is None:
            return
        self._computed.append(took_s)
        self._waited.append((self._wait_s, self._steps))
        self._wait_s, self._steps = 0.0, 0
        self._number += 1
        waited_s, steps = map(sum, zip(*self._waited, strict=True))
        self._pulse.reading = Reading(
            number=self._number,
            compute_s=statistics.median(self._computed),
            data_s=waited_s / steps,
        )


class CpuWork:
    """Less than a millisecond of arithmetic on a core."""

    SIZE = 256

    def __init__(self) -> None:
        self._left, self._right, self._out = torch.full((3, self.SIZE, self.SIZE), 0.5)
        self.do()  # the first time pays for what it finds

    def do(self) -> float:
        """Do it; seconds that it took."""
        began_s = time.perf_counter()
        torch.mm(self._left, self._right, out=self._out)
        return time.perf_counter() - began_s


class CudaWork:
    """About a millisecond of arithmetic on a GPU, in the stream that trains and without a wait.

    Args:
        device: Torch device string.
    """

    SIZE = 2048
    REPEATS = 32

    def __init__(self, device: str) -> None:
        shape = (3, self.SIZE, self.SIZE)
        tensors = torch.full(shape, 0.5, dtype=torch.float16, device=device)
        self._left, self._right, self._out = tensors
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._multiply()  # the first time pays for what it finds
        self._begun = False

    def do(self) -> float | None:
        """Begin it anew; seconds that it took the last time, None if that is not known yet."""
        began, ended = self._marks
        took_s = None
        if self._begun:
            if not ended.query():
                return None
            took_s = began.elapsed_time(ended) / 1000
        began.record()
        self._multiply()
        ended.record()
        self._begun = True
        return took_s

    def _multiply(self) -> None:
        for _ in range(self.REPEATS):
            torch.mm(self._left, self._right, out=self._out)
