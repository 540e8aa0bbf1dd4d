"""What a worker's process keeps from one group to the next, and how the controller reaches it.

A process outlives the groups it trains in. The training function of each group runs in a thread of
its own and begins with nothing; all that it may find from before is here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidemill.checkpoint.memory import Keeper, Memory
from tidemill.launch.health import Vitals
from tidemill.report.tail import Tail
from tidemill.spec.base import from_plain
from tidemill.spec.progress import Cursor, EventKind, Recorder
from tidemill.spec.run import RunSpec
from tidemill.train.meeting import open_store
from tidemill.train.pulse import Phase, Pulse
from tidemill.train.ranks import use_threads
from tidemill.train.teardown import abort_groups, find_survivors, freeze
from tidemill.train.warmup import import_libraries, warm_up

if TYPE_CHECKING:
    from torch.distributed import TCPStore


@dataclass(slots=True)
class Kept:
    """One per process.

    Attributes:
        memory: State of earlier steps, its own and a neighbour's.
        tail: Records of steps that may not be in any log yet.
        pulse: What the thread that trains does.
        recorder: Of the group that trains now.
        attempt: Its number; 0 while it is on its way.
        lived: The highest number of a group that this process was in.
        rejoin: What the controller measured of the change that led to this group.
        meeting: Where the ranks of the next group meet, if it is this process.
        stays: Whether this process is wanted in the next group.
        spoilt: Whether something of an old group could not be removed; it is fit for no other.
        saving: Set to ask for a checkpoint.
        leaving: Set to end the group at the next boundary of a step.
        released: Set when the controller has seen that this process is done with its group.
        reached: Steps taken when it took its newest one.
        stepped_s: When that was, by the monotonic clock; 0 before the first.
        ended_s: When its training thread ended, by the monotonic clock; 0 while it runs.
    """

    memory: Memory = field(default_factory=Memory)
    tail: Tail = field(default_factory=Tail)
    pulse: Pulse = field(default_factory=Pulse)
    recorder: Recorder | None = None
    attempt: int = 0
    lived: int = 0
    rejoin: dict[str, Any] = field(default_factory=dict[str, Any])
    meeting: TCPStore | None = None
    stays: bool = True
    spoilt: bool = False
    saving: threading.Event = field(default_factory=threading.Event)
    leaving: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    reached: int = 0
    stepped_s: float = 0.0
    ended_s: float = 0.0

    # --- called by the controller, in the process's main thread ----------------------------------

    def open_meeting(self, address: str) -> dict[str, Any]:
        """Have the ranks of the next group meet here; `address` and `port` for `form_group`."""
        self.meeting = open_store(address)
        return {"address": address, "port": self.meeting.port}

    def begin(self, rejoin: Mapping[str, Any]) -> None:
        """A new group: nothing that was asked of the old one holds any more."""
        self.rejoin = dict(rejoin)
        self.stays = True
        self.attempt = 0
        for event in (self.saving, self.leaving, self.released):
            event.clear()
        self.ended_s = 0.0
        self.pulse.beat(-1, Phase.starting)

    def vitals(self) -> Vitals:
        """How this process is."""
        beat, now_s = self.pulse.newest, time.monotonic()
        return Vitals(
            attempt=self.attempt,
            step=beat.step,
            phase=beat.phase,
            lap=beat.lap,
            age_s=now_s - beat.at_s,
            ended_s=now_s - self.ended_s if self.ended_s else 0.0,
            reading=self.pulse.reading,
        )

    def ask_to_leave(self, *, stays: bool) -> None:
        """End the group at the next boundary of a step."""
        self.stays = stays
        self.leaving.set()

    def tell(self, kind: EventKind, fields: Mapping[str, Any]) -> None:
        """Record what the controller has seen."""
        if self.recorder is not None:
            self.recorder.record(kind, **fields)

    def park(self, thread: threading.Thread | None, patience_s: float) -> bool:
        """End the thread that trains.

        Args:
            thread: It.
            patience_s: Seconds it may take; after half of them its collectives are broken off.

        Returns:
            Whether it has ended and left nothing behind.
        """
        self.leaving.set()
        self.released.set()
        if thread is not None:
            thread.join(patience_s / 2)
            if thread.is_alive():
                abort_groups()
                thread.join(patience_s / 2)
        return not self.spoilt and (thread is None or not thread.is_alive())

    # --- called by the thread that trains --------------------------------------------------------

    def take_meeting(self) -> TCPStore | None:
        """What `open_meeting` opened, if it did; it closes once its group is gone."""
        meeting, self.meeting = self.meeting, None
        return meeting

    def take_saving(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked = self.saving.is_set()
        if asked:
            self.saving.clear()
        return asked

    def note_step(self, cursor: Cursor) -> None:
        """A step was taken, and its state is kept."""
        self.reached, self.stepped_s = cursor.step, time.monotonic()


KEPT = Kept()


def prepare(config: Mapping[str, Any]) -> None:
    """Do once what costs a fresh process seconds, before anybody waits for it.

    Args:
        config: As for `run_worker`.
    """
    import tidemill.launch.worker  # noqa: F401 - with all that it imports

    spec = from_plain(RunSpec, config["spec"])
    use_threads(int(spec.scale.cpus_per_worker))
    device = "cuda:0" if spec.scale.gpus_per_worker else "cpu"
    import_libraries(spec, device)
    freeze()
    KEPT.spoilt = bool(find_survivors(warm_up(spec, device)))


class Announced:
    """A keeper that also says how the change to this group went, once its first step is kept.

    Args:
        keeper: It.
        recorder: Hears of it.
        began_s: When this group's training function began, by the monotonic clock.
        cursor: Where it goes on.
    """

    def __init__(self, keeper: Keeper, recorder: Recorder, began_s: float, cursor: Cursor) -> None:
        self._keeper = keeper
        self._recorder = recorder
        self._loaded_s = time.monotonic()
        self._fields = KEPT.rejoin | {
            "load_s": self._loaded_s - began_s,
            "redone": max(0, KEPT.reached - cursor.step),
        }
        self._before_s = KEPT.stepped_s
        self._told = self._fields.get("cause", "start") == "start"

    def tear(self) -> None:
        """See `Keeper.tear`."""
        self._keeper.tear()

    def commit(self, cursor: Cursor) -> None:
        """See `Keeper.commit`."""
        self._keeper.commit(cursor)
        KEPT.note_step(cursor)
        if not self._told:
            self._told = True
            self._recorder.record(EventKind.rejoined, step=cursor.step, **self._measured())

    def _measured(self) -> dict[str, Any]:
        now_s = time.monotonic()
        fields = {key: value for key, value in self._fields.items() if key != "meeting"}
        fields["first_step_s"] = now_s - self._loaded_s
        stages = sum(value for key, value in fields.items() if key.endswith("_s"))
        # A process that is new here has not seen the old group's last step.
        return fields | {"stall_s": now_s - self._before_s if self._before_s else stages}
