"""The purse: what a run has cost by the prices of its cluster's machines, and when it must stop.

The account is a file of the run, so it goes on with the next launch, and with the next driver after
one that was killed. A thread of the driver looks at the cluster; what it decides it asks of the run
in the same way as a person would, so the run saves a checkpoint before it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import ray
from ray.exceptions import RayError

from tidemill.errors import HopelessError, SpecError, StorageError, TrainingError
from tidemill.launch.clerk import Clerk
from tidemill.launch.prices import USD_PER_HOUR, Machine, find_machines
from tidemill.launch.stop import request_stop
from tidemill.plan.meter import ACCOUNT, HOUR_S, Horizon, Meter, Price, Verdict
from tidemill.spec.placement import BudgetSpec
from tidemill.spec.run import RunSpec
from tidemill.storage import Location, exists, publish, read_bytes

LOOK_S = 2.0
WRITE_S = 20.0
"""Seconds between two times that the account is written."""
LONGER = 2.0
"""Times the longest save so far that the last one may take."""

Nodes = Callable[[], Iterable[Mapping[str, Any]]]

logger = logging.getLogger(__name__)


class Purse:
    """Watches what a run costs, and asks it to stop in time.

    Args:
        spec: The run.
        run: Its directory.
        launch: Number of the launch's first attempt.
        say: Shows one line to the person.
        nodes: What `ray.nodes()` says.
        now_s: Seconds since the epoch.

    Attributes:
        verdict: Why the run was asked to stop; `go_on` if it was not.
        overdue: Whether it has not stopped in the time that was kept for that.
    """

    def __init__(
        self,
        spec: RunSpec,
        run: Location,
        launch: int,
        say: Callable[[str], None],
        *,
        nodes: Nodes = ray.nodes,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._spec, self._run, self._launch, self._say = spec, run, launch, say
        self._nodes, self._now_s = nodes, now_s
        self.verdict = Verdict.go_on
        self.overdue = False
        self._asked_s = math.inf
        self._save_s = spec.budget.save_s
        self._written_s = -math.inf
        self._dearest: Price | None = None
        self._machines: dict[str, Machine] = {}
        self._closing = threading.Event()
        self._asking, self._writing = Clerk(), Clerk()
        account = _read(run)
        begun_s = float(account.get("begun_s", now_s()))
        self._begun_s = begun_s
        deadline_s = begun_s + spec.deadline_s
        if account:
            self._meter = Meter.from_plain(spec.budget, account, deadline_s=deadline_s)
            aside_usd = spec.budget.set_aside_usd - float(account.get("set_aside_usd", 0.0))
            self._meter.charge(aside_usd)
        else:
            aside_usd = spec.budget.set_aside_usd
            self._meter = Meter(spec.budget, deadline_s=deadline_s, spent_usd=aside_usd)
        self._resumed = bool(account)

    @property
    def of_use(self) -> bool:
        """Whether there is anything to count or to keep."""
        timed = self._spec.deadline_s < math.inf
        return bool(self._spec.budget.limited or timed or self._prices())

    @property
    def spent_usd(self) -> float:
        """Dollars so far, with what was set aside."""
        return self._meter.spent_usd

    def open(self) -> None:
        """Look for the first time.

        Raises:
            SpecError: What the run would cost is not known, or there is no money or time left.
        """
        budget = self._spec.budget
        self._machines = find_machines(self._nodes(), budget)
        silent = [machine.address for machine in self._machines.values() if machine.price is None]
        if silent and budget.limited:
            raise SpecError(
                "budget.node_usd_per_hour",
                f"is not set, and the node {silent[0]} does not say what it costs",
                f"set it, or start nodes with --labels {USD_PER_HOUR}=1.20",
            )
        prices = self._prices()
        if self._resumed:
            self._meter.resume(self._now_s(), prices, budget.leave_s)
        else:
            self._meter.observe(self._now_s(), prices)
        if self.of_use:
            self._write()
            self._writing.finish()
        if (verdict := self._judge()) is not Verdict.go_on:
            raise SpecError(*self._refusal(verdict))

    def look(self) -> None:
        """Count what has been spent since the last look; ask the run to stop if it has to."""
        try:
            self._machines = find_machines(self._nodes(), self._spec.budget)
        except (RayError, RuntimeError, OSError, SpecError) as error:
            logger.warning("cannot see what machines cost, so they count as before: %s", error)
        self._meter.observe(self._now_s(), self._prices())
        verdict = self._judge()
        if verdict is not Verdict.go_on and self.verdict is Verdict.go_on:
            self.verdict, self._asked_s = verdict, self._now_s()
            self._say(f"{self._reason(verdict)}: saving a checkpoint, then stopping")
        if self.verdict is not Verdict.go_on:
            self._asking.do(self._ask_to_stop)
        self.overdue = self._now_s() > self._asked_s + self._save_s
        if self._now_s() - self._written_s >= WRITE_S:
            self._write()

    def saving_takes(self, seconds: float) -> None:
        """Take note of how long the run may go on before and while it saves."""
        self._save_s = max(self._save_s, LONGER * seconds)

    def __enter__(self) -> Self:
        """Look from now on, in a thread."""
        self._thread = threading.Thread(target=self._keep_looking, name="purse", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look once more, and leave the account to the next launch."""
        self._closing.set()
        self._thread.join()
        self._meter.observe(self._now_s(), self._prices())
        self._writing.finish()
        self._write()
        self._writing.finish()

    @property
    def reason(self) -> str:
        """Why the run was asked to stop, in a few words; empty if it was not."""
        return "" if self.verdict is Verdict.go_on else self._reason(self.verdict)

    def raise_if_overdue(self) -> None:
        """End the run without a last checkpoint if it has not saved one in time.

        Raises:
            HopelessError: It has not.
        """
        if self.overdue:
            raise HopelessError(
                f"{self.reason}, and no checkpoint was saved within {self._save_s:.0f} s; the "
                "newest one before it is kept"
            )

    def _keep_looking(self) -> None:
        while not self._closing.wait(LOOK_S):
            self.look()

    def _prices(self) -> dict[str, Price]:
        """By node. One that came without a price is taken for as dear as the dearest so far."""
        known = {name: m.price for name, m in self._machines.items() if m.price is not None}
        dearest = max([*known.values(), *filter(None, [self._dearest])], key=_dear, default=None)
        self._dearest = dearest
        if dearest is None:
            return {}
        return {name: machine.price or dearest for name, machine in self._machines.items()}

    def _judge(self) -> Verdict:
        most = self._spec.budget.max_usd_per_gpu_hour
        if most and any(machine.usd_per_gpu_hour > most for machine in self._machines.values()):
            return Verdict.rate
        leave_s = self._spec.budget.leave_s
        return self._meter.judge(Horizon(look_s=LOOK_S, save_s=self._save_s, leave_s=leave_s))

    def _reason(self, verdict: Verdict) -> str:
        """Why the run stops, in a few words."""
        budget, spent = self._spec.budget, f"{self.spent_usd:,.2f}"
        match verdict:
            case Verdict.money:
                return f"{spent} of budget.max_total_usd={budget.max_total_usd:g} are spent"
            case Verdict.time:
                gone_h = (self._now_s() - self._begun_s) / HOUR_S
                return f"{gone_h:.2f} h of deadline={self._spec.deadline} have gone"
            case _:
                return f"the cluster costs {self._meter.usd_per_hour:,.2f} usd an hour"

    def _refusal(self, verdict: Verdict) -> tuple[str, str, str]:
        """Key, problem and remedy where there is no use in beginning."""
        budget, meter = self._spec.budget, self._meter
        keep_s = LOOK_S + self._save_s + budget.leave_s
        match verdict:
            case Verdict.money:
                need = meter.forecast_usd(keep_s)
                problem = f"{self.spent_usd:,.2f} of {budget.max_total_usd:g} are spent, and to "
                problem += f"save and leave would take them to {need:,.2f}"
                return "budget.max_total_usd", problem, f"set it well above {need:.2f}"
            case Verdict.time:
                problem = f"no time is left of {self._spec.deadline} since the first launch"
                return "deadline", problem, "extend it, or leave it out"
            case _ if budget.max_usd_per_hour and meter.usd_per_hour > budget.max_usd_per_hour:
                problem = f"the cluster costs {meter.usd_per_hour:,.2f} usd an hour"
                return "budget.max_usd_per_hour", problem, "use fewer machines, or raise it"
            case _:
                dear = max(machine.usd_per_gpu_hour for machine in self._machines.values())
                problem = f"the cluster has GPUs for {dear:,.2f} usd an hour"
                return "budget.max_usd_per_gpu_hour", problem, "use other machines, or raise it"

    def _ask_to_stop(self) -> None:
        try:
            request_stop(self._run, self._launch)
        except StorageError as error:
            self._say(f"the workers cannot be asked to stop: {error}")

    def _write(self) -> None:
        """Keep the account; storage that fails is tried again, and must not end the run."""
        plain = self._meter.to_plain() | {
            "begun_s": self._begun_s,
            "set_aside_usd": self._spec.budget.set_aside_usd,
            "usd_per_hour": self._meter.usd_per_hour,
        }
        text = json.dumps(plain, indent=2) + "\n"

        def write() -> None:
            try:
                publish(self._run / ACCOUNT, text.encode())
            except StorageError as error:
                logger.warning("the account of what was spent cannot be written: %s", error)

        if self._writing.do(write):
            self._written_s = self._now_s()


@contextlib.contextmanager
def open_purse(
    spec: RunSpec, run: Location, launch: int, say: Callable[[str], None]
) -> Iterator[Purse]:
    """Watch what a run costs, for as long as it goes on.

    Raises:
        SpecError: What it would cost is not known, or there is no money or time left.
        TrainingError: There is an account and it cannot be read.
    """
    purse = Purse(spec, run, launch, say)
    purse.open()
    with purse if purse.of_use else contextlib.nullcontext():
        yield purse


def _dear(price: Price) -> float:
    return price.most_usd_per_hour


def _read(run: Location) -> dict[str, Any]:
    """The account of earlier launches; empty if there is none."""
    if not exists(run / ACCOUNT):
        return {}
    try:
        found: Any = json.loads(read_bytes(run / ACCOUNT))
        Meter.from_plain(BudgetSpec(), found)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{run / ACCOUNT} is damaged, so nobody knows what the run has cost; remove it to "
            "begin a new account"
        ) from error
    return found
